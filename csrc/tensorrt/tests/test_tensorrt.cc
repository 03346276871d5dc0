// The TensorRT backend without a GPU: every path to the driver and to TensorRT, and what goes wrong on it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "fake_cuda.h"
#include "owners.h"
#include "plan.h"
#include "plan_checks.h"
#include "segmenter_trt/errors.h"
#include "sha256.h"

namespace segmenter_trt {
namespace {

using Bytes = std::vector<std::uint8_t>;

using Version = std::array<int, 4>;
constexpr Version kVersion = {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, 1, 48};

// The 32 bytes a plan begins with.
std::string header(const std::string& tag, const Version& version, std::size_t length = 0, char layout = 0) {
  std::string text = tag + std::string(1, layout) + std::string(11, '\0');
  for (int byte = 0; byte < 8; ++byte) text += static_cast<char>(length >> 8 * byte);
  for (const int number : version) text += static_cast<char>(number);
  return text + tag;
}

std::string plan_of(const std::string& words) { return header("ftrt", kVersion) + words; }

const std::string kPlan = plan_of("fake 4 64 64 5 8 masks");
const ImageShape kShape = {2, 16, 24};

Manifest manifest_of(const std::string& plan) {
  Manifest manifest{};
  manifest.artifact = "model.plan";
  manifest.kind = Kind::plan;
  manifest.engine = "tensorrt";
  manifest.precision = "fp16";
  manifest.model = "fake";
  manifest.input = plan.find("normalized") == std::string::npos ? Input::pixels : Input::normalized;
  manifest.outputs = {"labels"};
  if (plan.find("masks") != std::string::npos) manifest.outputs.push_back("masks");
  manifest.classes = {"a", "b", "c", "d", "e"};
  if (plan.find("int32") != std::string::npos) manifest.classes.resize(257);
  manifest.versions = {
      {"tensorrt", std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + ".1.48"}};
  manifest.compute_capabilities = {"8.0+"};
  return manifest;
}

std::unique_ptr<tensorrt::Plan> open(const std::string& plan, const Manifest& manifest, EngineOptions options = {}) {
  if (options.runtime.empty()) options.runtime = FAKES;
  const std::filesystem::path artifact = "model.plan";
  return std::make_unique<tensorrt::Plan>(
      BackendRequest{manifest, artifact, std::as_bytes(std::span(plan.data(), plan.size())), options});
}

std::unique_ptr<tensorrt::Plan> open(const std::string& plan = kPlan) { return open(plan, manifest_of(plan)); }

Bytes picture(const ImageShape& shape, int seed) {
  Bytes pixels(static_cast<std::size_t>(shape.B * shape.H * shape.W * 3));
  for (std::size_t at = 0; at < pixels.size(); ++at) pixels[at] = static_cast<std::uint8_t>((at * 7 + seed * 31) % 251);
  return pixels;
}

Bytes expected(const Bytes& pixels) {
  Bytes labels(pixels.size() / 3);
  for (std::size_t at = 0; at < labels.size(); ++at) labels[at] = pixels[3 * at] % 5;
  return labels;
}

Bytes labels_of(const HostOutputs& outputs, const ImageShape& shape) {
  const auto* const from = static_cast<const std::uint8_t*>(outputs.labels);
  return {from, from + shape.B * shape.H * shape.W};
}

std::string told(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void expect_told(const std::string& wanted, const std::function<void()>& action) {
  const std::string found = told(action);
  EXPECT_NE(found.find(wanted), std::string::npos) << found;
  EXPECT_EQ(found.find('\n'), std::string::npos) << found;
}

// Whatever a test does, all is given back after it.
class Tensorrt : public testing::Test {
 protected:
  void SetUp() override { fake_cuda_set_device(9, 0, 1); }
  void TearDown() override {
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
};

TEST_F(Tensorrt, LabelsAndMasksOfEveryCallAreOfItsImages) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  for (int call = 0; call < 4; ++call) {
    const Bytes pixels = picture(kShape, call);
    const HostOutputs outputs = runner->run(kShape, pixels.data(), Wanted::labels);
    EXPECT_EQ(labels_of(outputs, kShape), expected(pixels)) << "call " << call;
    ASSERT_EQ(outputs.masks.B, 2);
    ASSERT_EQ(outputs.masks.K, 5);
    ASSERT_EQ(outputs.masks.h, 2);
    ASSERT_EQ(outputs.masks.w, 3);
    EXPECT_EQ(outputs.masks.data[pixels[0] % 5 * 6], 1.0f);
  }
}

TEST_F(Tensorrt, AShapeIsCapturedAtItsSecondCallAndReplayedFromThen) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const int launches = fake_cuda_counts().launches;
  const Bytes pixels = picture(kShape, 1);
  const int wanted[] = {0, 1, 2, 3};
  for (const int graphs : wanted) {
    runner->run(kShape, pixels.data(), Wanted::labels);
    EXPECT_EQ(fake_cuda_counts().launches - launches, graphs);
  }
  SessionOptions plain;
  plain.graphs = false;
  const auto without = plan->make_runner(plain);
  for (int call = 0; call < 3; ++call) without->run(kShape, pixels.data(), Wanted::labels);
  EXPECT_EQ(fake_cuda_counts().launches - launches, 3);
}

TEST_F(Tensorrt, ImagesMayBeWrittenWhereTheGpuReadsThem) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const Bytes pixels = picture(kShape, 3);
  void* const staged = runner->stage(kShape);
  std::memcpy(staged, pixels.data(), pixels.size());
  EXPECT_EQ(labels_of(runner->run(kShape, staged, Wanted::labels), kShape), expected(pixels));
  EXPECT_EQ(runner->stage(kShape), staged);
}

TEST_F(Tensorrt, ShapesTakeTurnsAndTheOldestGoes) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  std::vector<ImageShape> shapes;
  for (std::int64_t side = 1; side <= 12; ++side) shapes.push_back({1, 4 * side, 64 - side});
  int most = 0;
  for (int round = 0; round < 3; ++round) {
    for (const ImageShape& shape : shapes) {
      const Bytes pixels = picture(shape, round);
      EXPECT_EQ(labels_of(runner->run(shape, pixels.data(), Wanted::labels), shape), expected(pixels));
      most = std::max(most, fake_cuda_counts().pinned_memory);
    }
  }
  EXPECT_EQ(most, 8 * 3);  // images, labels, masks
  // few enough to keep: all are graphs by their third call
  for (int round = 0; round < 3; ++round) {
    const int launches = fake_cuda_counts().launches;
    for (std::size_t index = 0; index < 5; ++index) {
      const Bytes pixels = picture(shapes[index], round);
      EXPECT_EQ(labels_of(runner->run(shapes[index], pixels.data(), Wanted::labels), shapes[index]), expected(pixels));
    }
    if (round == 2) {
      EXPECT_EQ(fake_cuda_counts().launches - launches, 5);
    }
  }
}

TEST_F(Tensorrt, AGraphOutlivesWhatItsSessionDoesBetweenReplays) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const ImageShape other = {1, 8, 16};
  const Bytes a = picture(kShape, 1), b = picture(other, 2);
  const auto run = [&](const ImageShape& shape, const Bytes& pixels) {
    return labels_of(runner->run(shape, pixels.data(), Wanted::labels), shape) == expected(pixels);
  };
  // each is captured after the other was run, and replayed after the other was captured
  const int launches = fake_cuda_counts().launches;
  for (int call = 0; call < 4; ++call) {
    EXPECT_TRUE(run(kShape, a)) << "call " << call;
    EXPECT_TRUE(run(other, b)) << "call " << call;
  }
  EXPECT_EQ(fake_cuda_counts().launches - launches, 6);
}

TEST_F(Tensorrt, LabelsOfAnotherSizeThanTheImagesAreRefused) {
  const auto plan = open(plan_of("fake 4 64 64 5 8 short"));
  const auto runner = plan->make_runner({});
  const Bytes pixels = picture(kShape, 1);
  expect_told("tensor labels is [2, 15, 24] of images [2, 16, 24, 3]",
              [&] { runner->run(kShape, pixels.data(), Wanted::labels); });
}

TEST_F(Tensorrt, AnEngineIsHeardAfterAnOlderOneIsGone) {
  auto older = open();
  const auto plan = open();
  older.reset();
  const auto runner = plan->make_runner({});
  const Bytes pixels = picture(kShape, 1);
  fake_cuda_fail("submit", 700, 1);
  expect_told("failed: the stream refused", [&] { runner->run(kShape, pixels.data(), Wanted::labels); });
}

TEST_F(Tensorrt, LabelsOfManyClassesBecomeInt16) {
  const std::string text = plan_of("fake 1 64 64 5 8 int32");
  const auto plan = open(text);
  const auto runner = plan->make_runner({});
  const ImageShape shape = {1, 8, 8};
  const Bytes pixels = picture(shape, 2), wanted = expected(pixels);
  for (int call = 0; call < 3; ++call) {
    const HostOutputs outputs = runner->run(shape, pixels.data(), Wanted::labels);
    EXPECT_EQ(outputs.masks.data, nullptr);
    for (std::size_t at = 0; at < wanted.size(); ++at) {
      ASSERT_EQ(static_cast<const std::int16_t*>(outputs.labels)[at], wanted[at]);
    }
  }
}

TEST_F(Tensorrt, PlansOfNormalisedImagesTakeThem) {
  const auto plan = open(plan_of("fake 4 64 64 5 8 normalized"));
  EXPECT_EQ(plan->input(), Input::normalized);
  const auto runner = plan->make_runner({});
  const Bytes pixels = picture({1, 8, 8}, 4);
  std::vector<float> planes(3 * 64);
  for (std::size_t at = 0; at < 64; ++at) planes[at] = static_cast<float>(pixels[3 * at]) / 255.0f;
  EXPECT_EQ(labels_of(runner->run({1, 8, 8}, planes.data(), Wanted::labels), {1, 8, 8}), expected(pixels));
  expect_told("wants normalised images", [&] { runner->enqueue({1, 8, 8}, nullptr, nullptr, nullptr); });
}

TEST_F(Tensorrt, ImagesOnTheDeviceAreLabelledThere) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const cuda::Driver& driver = cuda::driver();
  const cuda::Current current(driver, plan->context());
  const Bytes pixels = picture(kShape, 5), other = picture(kShape, 6);
  const cuda::DeviceMemory images = cuda::device_memory(driver, pixels.size());
  const cuda::DeviceMemory labels = cuda::device_memory(driver, pixels.size() / 3);
  std::memcpy(reinterpret_cast<void*>(images.get()), pixels.data(), pixels.size());
  const cuda::Stream stream = cuda::stream(driver);
  const auto enqueue = [&] {
    runner->enqueue(kShape, reinterpret_cast<void*>(images.get()), reinterpret_cast<void*>(labels.get()), stream.get());
    const auto* const found = reinterpret_cast<const std::uint8_t*>(labels.get());
    return Bytes(found, found + pixels.size() / 3);
  };
  EXPECT_EQ(enqueue(), expected(pixels));
  // between calls on the host, whose graph must keep its own addresses
  for (int call = 0; call < 3; ++call) {
    EXPECT_EQ(labels_of(runner->run(kShape, other.data(), Wanted::labels), kShape), expected(other));
    EXPECT_EQ(enqueue(), expected(pixels));
  }
  const auto at = [](cuda::Address address) { return reinterpret_cast<void*>(address); };
  alignas(256) static std::uint8_t host[1];
  expect_told("an address that is not the device's",
              [&] { runner->enqueue(kShape, host, at(labels.get()), stream.get()); });
  expect_told("images on the GPU begin 3 bytes past a multiple of 256",
              [&] { runner->enqueue(kShape, at(images.get() + 3), at(labels.get()), stream.get()); });
  expect_told("labels on the GPU begin 16 bytes past a multiple of 256",
              [&] { runner->enqueue(kShape, at(images.get()), at(labels.get() + 16), stream.get()); });
}

TEST_F(Tensorrt, SessionsShareAWorkspaceByTakingTurns) {
  const auto plan = open();
  SessionOptions options;
  options.shared_workspace = true;
  const auto first = plan->make_runner(options), second = plan->make_runner(options);
  const Bytes a = picture(kShape, 7), b = picture(kShape, 8);
  for (int call = 0; call < 3; ++call) {
    EXPECT_EQ(labels_of(first->run(kShape, a.data(), Wanted::labels), kShape), expected(a));
    EXPECT_EQ(labels_of(second->run(kShape, b.data(), Wanted::labels), kShape), expected(b));
  }
}

void many_threads(bool shared) {
  const auto plan = open();
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int number = 0; number < 8; ++number) {
    threads.emplace_back([&, number] {
      SessionOptions options;
      options.shared_workspace = shared;
      const auto runner = plan->make_runner(options);
      for (int call = 0; call < 50; ++call) {
        const ImageShape shape = {1 + call % 2, 16, 24};
        const Bytes pixels = picture(shape, number * 50 + call);
        if (labels_of(runner->run(shape, pixels.data(), Wanted::labels), shape) != expected(pixels)) ++wrong;
      }
    });
  }
  for (std::thread& one : threads) one.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Tensorrt, ThreadsWithASessionEach) { many_threads(false); }
TEST_F(Tensorrt, ThreadsThatShareAWorkspace) { many_threads(true); }

TEST_F(Tensorrt, FailuresOfTheDriverAreNamedAndNothingIsLost) {
  const char* const functions[] = {"MemAlloc",        "MemHostAlloc",      "MemcpyHtoDAsync",
                                   "MemcpyDtoHAsync", "StreamSynchronize", "CtxPushCurrent"};
  const Bytes pixels = picture(kShape, 9);
  for (const char* const function : functions) {
    const auto plan = open();
    const auto runner = plan->make_runner({});
    fake_cuda_fail(function, 2, 1);
    EXPECT_THROW(runner->run(kShape, pixels.data(), Wanted::labels), RunError) << function;
    fake_cuda_fail(function, 0, 0);
    EXPECT_EQ(labels_of(runner->run(kShape, pixels.data(), Wanted::labels), kShape), expected(pixels)) << function;
  }
  for (const char* const function : {"StreamCreate", "EventCreate", "MemAlloc"}) {
    const auto plan = open();
    fake_cuda_fail(function, 2, 1);
    EXPECT_THROW(plan->make_runner({}), RunError) << function;
    fake_cuda_fail(function, 0, 0);
  }
}

TEST_F(Tensorrt, WhatCannotBeCapturedRunsWithoutAGraph) {
  for (const char* const function : {"StreamBeginCapture", "StreamEndCapture", "GraphInstantiateWithFlags", "submit"}) {
    const auto plan = open();
    const auto runner = plan->make_runner({});
    const Bytes pixels = picture(kShape, 10);
    runner->run(kShape, pixels.data(), Wanted::labels);
    fake_cuda_fail(function, 900, 1);
    const int launches = fake_cuda_counts().launches;
    for (int call = 0; call < 3; ++call) {
      EXPECT_EQ(labels_of(runner->run(kShape, pixels.data(), Wanted::labels), kShape), expected(pixels)) << function;
    }
    EXPECT_EQ(fake_cuda_counts().launches, launches) << function;
    fake_cuda_fail(function, 0, 0);
  }
}

TEST_F(Tensorrt, AFailingNetworkIsToldInTensorRtsWords) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const Bytes pixels = picture(kShape, 11);
  fake_cuda_fail("submit", 700, 1);
  expect_told("tensorrt: the network failed: the stream refused",
              [&] { runner->run(kShape, pixels.data(), Wanted::labels); });
  fake_cuda_fail("submit", 0, 0);
  expect_told("5x16x24: outside this plan's profile (outside the profile)", [&] {
    runner->run({5, 16, 24}, pixels.data(), Wanted::labels);
  });
  EXPECT_EQ(labels_of(runner->run(kShape, pixels.data(), Wanted::labels), kShape), expected(pixels));
}

TEST_F(Tensorrt, PlansThatCannotRunHereAreNamed) {
  Manifest manifest = manifest_of(kPlan);
  manifest.compute_capabilities = {"8.6", "10.0+"};
  expect_told("built for GPUs of compute capability 8.6, 10.0+, Fake GPU has 9.0", [&] { open(kPlan, manifest); });
  manifest.compute_capabilities = {"9.0"};
  EXPECT_NO_THROW(open(kPlan, manifest));
  for (const char* const wanted : {"", "9", "9.1", "9.1+", "nine.zero"}) {
    manifest.compute_capabilities = {wanted};
    EXPECT_THROW(open(kPlan, manifest), ArtifactError) << wanted;
  }
  manifest.compute_capabilities.clear();
  EXPECT_NO_THROW(open(kPlan, manifest));
  manifest = manifest_of(kPlan);
  manifest.versions = {{"tensorrt", "10.3.0.26"}};
  expect_told("built with tensorrt 10.3.0.26, this is 10.", [&] { open(kPlan, manifest); });
  manifest.versions.clear();
  expect_told("built with tensorrt of a version its manifest does not tell", [&] { open(kPlan, manifest); });
  expect_told("cannot load it: this is no plan", [&] { open(plan_of("broken"), manifest_of(kPlan)); });
  manifest = manifest_of(kPlan);
  manifest.input = Input::normalized;
  expect_told("tensor images has a type or direction", [&] { open(kPlan, manifest); });
  manifest = manifest_of(kPlan);
  manifest.outputs = {"labels"};
  expect_told("output masks, which its manifest does not say", [&] { open(kPlan, manifest); });
  manifest = manifest_of(kPlan);
  manifest.classes.resize(257);
  expect_told("tensor labels has a type or direction", [&] { open(kPlan, manifest); });
  manifest = manifest_of(kPlan);
  manifest.outputs = {"labels", "masks", "confidence"};
  expect_told("has no output confidence", [&] { open(kPlan, manifest); });
}

TEST_F(Tensorrt, WhatTheMachineLacksIsNamed) {
  EngineOptions options;
  options.runtime = OLDER;
  expect_told("compile it with the headers of that library", [&] { open(kPlan, manifest_of(kPlan), options); });
  options.runtime = "/nowhere/libnvinfer.so.10";
  expect_told("pip install tensorrt", [&] { open(kPlan, manifest_of(kPlan), options); });
  options = {};
  options.device = 1;
  expect_told("device 1: this machine has 1 GPU(s)", [&] { open(kPlan, manifest_of(kPlan), options); });
  options.device = -1;
  EXPECT_THROW(open(kPlan, manifest_of(kPlan), options), InputError);
}

TEST_F(Tensorrt, PluginsAreLoadedBeforeThePlan) {
  const auto folder = std::filesystem::temp_directory_path() / ("segmenter_trt_plugins_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  for (const char* const name : {"plugins.so", "missing.so"}) std::ofstream(folder / name) << "a library";
  Manifest manifest = manifest_of(kPlan);
  manifest.command = "segmenter build m.onnx --out model.plan";
  manifest.plugins = {"SegmenterAttention"};
  EngineOptions options;
  options.plugins = folder / "plugins.so";
  const auto opened = [&] { open(kPlan, manifest, options); };
  expect_told("model.plan.json: vouches for no plugin library where the plan needs one (SegmenterAttention)", opened);
  const std::string bytes = "a library";
  manifest.plugin_library = {"p.so", sha256(std::as_bytes(std::span(bytes)))};
  EXPECT_NO_THROW(opened());
  options.plugins.clear();
  expect_told("needs the plugin library p.so (SegmenterAttention), which is not here (none was found)", opened);
  options.plugins = folder / "none.so";
  expect_told("none.so); install segmenter-trt with its plugins", opened);
  options.plugins = folder / "missing.so";
  expect_told("missing.so: cannot open it", opened);
  // another library: named with both hashes and what to do, and never loaded
  manifest.plugin_library->sha256 = std::string(64, '0');
  expect_told("built with plugin library p.so of SHA-256 " + std::string(64, '0') + ", " + options.plugins.string() +
                  " has " + sha256(std::as_bytes(std::span(bytes))) +
                  "; install that one, or make it again: `segmenter build m.onnx --out model.plan`",
              opened);
  options.plugins = folder / "plugins.so";
  manifest.plugin_library->sha256 = sha256(std::as_bytes(std::span(bytes)));
  manifest.plugins = {"SegmenterAttention", "SegmenterOther"};
  expect_told("has no plugin SegmenterOther", opened);
  std::filesystem::remove_all(folder);
}

TEST_F(Tensorrt, APlansOwnHeaderIsBelievedAgainstItsManifest) {
  const Manifest manifest = manifest_of(kPlan);
  const std::string words = "fake 4 64 64 5 8 masks";
  const auto refused = [&](const std::string& plan, const std::string& wanted) {
    expect_told(wanted, [&] { open(plan, manifest); });
  };
  refused(header("vtrt", kVersion) + words, "begins as one of tensorrt-rtx does, wanted one of tensorrt");
  refused(words + words, "begins as no plan does");
  refused("", "begins as no plan does");
  refused(kPlan.substr(0, 31), "begins as no plan does");
  refused(header("ftrt", {10, 3, 0, 26}) + words, "its own header says tensorrt 10.3.0.26 wrote it, this is ");
  EXPECT_NO_THROW(open(header("ftrt", {1, 2, 3, 4}, 0, 1) + words, manifest));  // a layout that is not known
}

TEST(PlanChecks, APlanOfRtxTellsItsLength) {
  Manifest manifest{};
  manifest.versions = {{"tensorrt-rtx", "1.7.1.372.post1"}};
  const auto check = [&](const std::string& plan, const std::string& version) {
    return told([&] {
      tensorrt::require_version(manifest, "m.plan", std::as_bytes(std::span(plan)), "tensorrt-rtx", version);
    });
  };
  const std::string tail(300, '\1');
  const auto plan = [&](std::size_t length) { return header("vtrt", {1, 7, 1, 372 % 256}, length) + tail; };
  EXPECT_EQ(check(plan(332), "1.7.1.372"), "nothing was thrown");
  EXPECT_EQ(check(plan(331), "1.7.1.372"),
            "m.plan: has 332 bytes, its own header says 331; make it again: `segmenter build GRAPH.onnx --out m.plan`");
  const std::size_t past = (std::size_t{1} << 56) + 332;
  EXPECT_NE(check(plan(past), "1.7.1.372").find("header says " + std::to_string(past)), std::string::npos);
  EXPECT_NE(check(plan(332), "1.7.1.373").find("built with tensorrt-rtx 1.7.1.372.post1, this is 1.7.1.373"),
            std::string::npos);
  for (const char* const version : {"", "x", "1.7", "99999999999999999999.1"}) {
    manifest.versions = {{"tensorrt-rtx", version}};
    EXPECT_NE(check(plan(332), "1.7.1.372").find("built with"), std::string::npos) << version;
  }
}

TEST_F(Tensorrt, FactsForReports) {
  const Description facts = open()->describe();
  EXPECT_EQ(facts.engine, "tensorrt");
  EXPECT_EQ(facts.device, "Fake GPU");
  EXPECT_EQ(facts.runtime.rfind("tensorrt 10.", 0), 0u);
}

}  // namespace
}  // namespace segmenter_trt
