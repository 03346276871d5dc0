// Plans of the fake TensorRT, what they make of pictures, and a test that sees that all is given back.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fake_cuda.h"
#include "plan.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt {

using Bytes = std::vector<std::uint8_t>;

using Version = std::array<int, 4>;
inline constexpr Version kVersion = {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, 1, 48};

// The 32 bytes a plan begins with.
inline std::string header(const std::string& tag, const Version& version, std::size_t length = 0, char layout = 0) {
  std::string text = tag + std::string(1, layout) + std::string(11, '\0');
  for (int byte = 0; byte < 8; ++byte) text += static_cast<char>(length >> 8 * byte);
  for (const int number : version) text += static_cast<char>(number);
  return text + tag;
}

inline std::string plan_of(const std::string& words) {
#ifdef SEGMENTER_TRT_RTX
  return header("vtrt", kVersion, 32 + words.size()) + words;
#else
  return header("ftrt", kVersion) + words;
#endif
}

inline const std::string kPlan = plan_of("fake 4 64 64 5 8 masks");
inline constexpr ImageShape kShape = {2, 16, 24};

inline Manifest manifest_of(const std::string& plan) {
  Manifest manifest{};
  manifest.artifact = "model.plan";
  manifest.kind = Kind::plan;
  manifest.engine = tensorrt::kEngine;
  manifest.precision = "fp16";
  manifest.model = "fake";
  manifest.patch_size = 8;
  manifest.height = manifest.width = {8, 16, 64};
  manifest.batch = {1, 1, plan.find("fake 1 ") == std::string::npos ? 4 : 1};
  manifest.input = plan.find("normalized") == std::string::npos ? Input::pixels : Input::normalized;
  manifest.outputs = {"labels"};
  if (plan.find("masks") != std::string::npos) manifest.outputs.push_back("masks");
  manifest.classes = {"a", "b", "c", "d", "e"};
  if (plan.find("int32") != std::string::npos) manifest.classes.resize(257);
  manifest.versions = {
      {tensorrt::kEngine, std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + ".1.48"}};
  manifest.compute_capabilities = {"8.0+"};
  return manifest;
}

inline std::unique_ptr<tensorrt::Plan> open(const std::string& plan, const Manifest& manifest,
                                            EngineOptions options = {},
                                            segmenter_launch::Launcher& launcher = tensorrt::launcher_of_process()) {
  if (options.runtime.empty()) options.runtime = FAKES;
  const std::filesystem::path artifact = "model.plan";
  return std::make_unique<tensorrt::Plan>(
      BackendRequest{manifest, artifact, std::as_bytes(std::span(plan.data(), plan.size())), options}, launcher);
}

inline std::unique_ptr<tensorrt::Plan> open(const std::string& plan = kPlan) { return open(plan, manifest_of(plan)); }

inline Bytes picture(const ImageShape& shape, int seed) {
  Bytes pixels(static_cast<std::size_t>(shape.B * shape.H * shape.W * 3));
  for (std::size_t at = 0; at < pixels.size(); ++at) pixels[at] = static_cast<std::uint8_t>((at * 7 + seed * 31) % 251);
  return pixels;
}

inline Bytes expected(const Bytes& pixels) {
  Bytes labels(pixels.size() / 3);
  for (std::size_t at = 0; at < labels.size(); ++at) labels[at] = pixels[3 * at] % 5;
  return labels;
}

inline Bytes labels_of(const HostOutputs& outputs, const ImageShape& shape) {
  const auto* const from = static_cast<const std::uint8_t*>(outputs.labels);
  return {from, from + shape.B * shape.H * shape.W};
}

inline std::string told(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

inline void expect_told(const std::string& wanted, const std::function<void()>& action) {
  const std::string found = told(action);
  EXPECT_NE(found.find(wanted), std::string::npos) << found;
  EXPECT_EQ(found.find('\n'), std::string::npos) << found;
}

inline void expect_all_given_back() {
  const FakeCudaCounts left = fake_cuda_counts();
  EXPECT_EQ(left.device_memory, 0);
  EXPECT_EQ(left.pinned_memory, 0);
  EXPECT_EQ(left.streams, 0);
  EXPECT_EQ(left.events, 0);
  EXPECT_EQ(left.graphs, 0);
  EXPECT_EQ(left.execs, 0);
  EXPECT_EQ(left.contexts, 0);
  EXPECT_EQ(left.pushed, 0);
}

// Whatever a test does, all is given back after it.
class Tensorrt : public testing::Test {
 protected:
  void SetUp() override { fake_cuda_set_device(9, 0, 1); }
  void TearDown() override {
    fake_cuda_defer(0);
    fake_cuda_limit_memory(0);
    expect_all_given_back();
  }
};

}  // namespace segmenter_trt
