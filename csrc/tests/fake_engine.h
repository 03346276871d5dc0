// Artifacts on disk for the fake runtime, and the text of a manifest.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>

#include "segmenter_trt/engine.h"
#include "sha256.h"

namespace segmenter_trt {

inline std::string digest_of(const std::string& bytes) { return sha256(std::as_bytes(std::span(bytes))); }

// One side of images, and how many classes.
struct Fake {
  std::string model = "fake";
  std::string input = "normalized";
  std::string height = "[1, 16, 512]";
  std::string width = "[1, 16, 512]";
  std::string batch = "[1, 1, 4]";
  std::string kind = "plan";
  std::string engine = "tensorrt";
  std::string outputs = R"(["labels", "masks"])";
  int patch = 4;
  int classes = 5;
  std::string bytes = "a plan";
  std::string verification = "null";
  std::string versions = R"({"python": "3.11"})";
  std::string preprocess = R"({"mean": [0, 0, 0], "std": [0.00392156862745098, 0.5, 0.5]})";

  std::string artifact() const { return "m." + kind; }

  std::string manifest() const {
    std::string names;
    std::string palette;
    for (int k = 0; k < classes; ++k) {
      names += (k ? ", " : "") + ("\"class " + std::to_string(k) + "\"");
      palette += (k ? ", [" : "[") + std::to_string(k % 256) + ", 0, 255]";
    }
    return R"({"artifact": ")" + artifact() + R"(", "kind": ")" + kind + R"(", "engine": ")" + engine +
           R"(", "precision": "fp32", "sha256": ")" + digest_of(bytes) +
           R"(", "source": {"checkpoint": "sha256:00", "onnx": "sha256:00"}, "model": ")" + model +
           R"(", "patch_size": )" + std::to_string(patch) + R"(, "input": ")" + input + R"(", "height": )" + height +
           R"(, "width": )" + width + R"(, "batch": )" + batch + R"(, "outputs": )" + outputs + R"(, "classes": [)" +
           names + R"(], "palette": [)" + palette + R"(], "preprocess": )" + preprocess +
           R"(, "command": "make", "versions": )" + versions +
           R"(, "machine": "Linux", "plugins": [], "compute_capabilities": [],)"
           R"( "details": {"opset": 20}, "verification": )" +
           verification + R"(, "format": 2})";
  }
};

// A folder of this test's own, gone afterwards.
class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    setenv("SEGMENTER_TRT_BACKENDS", FAKE_BACKENDS, 1);
    const testing::TestInfo* const test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() /
              ("segmenter_trt_" + std::to_string(getpid()) + "_" + test->test_suite_name() + "_" + test->name());
    std::filesystem::create_directories(folder_);
  }
  ~EngineTest() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }

  Engine open(const Fake& fake, const EngineOptions& options = {}) const {
    write(fake.artifact(), fake.bytes);
    write(fake.artifact() + ".json", fake.manifest());
    return Engine::open(folder_ / fake.artifact(), options);
  }

  // The message of the Error that `call` throws.
  template <class Expected>
  static std::string told(const std::function<void()>& call) {
    try {
      call();
    } catch (const Expected& error) {
      return error.what();
    }
    ADD_FAILURE() << "nothing was thrown";
    return "";
  }

  std::filesystem::path folder_;
};

}  // namespace segmenter_trt
