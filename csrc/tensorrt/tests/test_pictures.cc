// What goes wrong around the kernels that cut, merge and resize: each leaves a session that works.
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "fake_plans.h"
#include "launcher.h"

namespace segmenter_trt {
namespace {

using segmenter_launch::kKernels;
using segmenter_launch::Launcher;

constexpr WindowGrid kGrid = {40, 56, 24, 16, 2, 1, 5, 3, 3, {24, 24}};

class Pictures : public Tensorrt {
 protected:
  void SetUp() override {
    Tensorrt::SetUp();
    if (kKernels.images.empty()) GTEST_SKIP() << "built without kernels: SEGMENTER_TRT_CUBINS names no folder of them";
  }
};

Bytes windows_by(Runner& runner, int seed) {
  const Bytes pixels = picture({1, kGrid.H, kGrid.W}, seed);
  Bytes labels(static_cast<std::size_t>(kGrid.H * kGrid.W), 99);
  std::memcpy(runner.stage_picture(kGrid), pixels.data(), pixels.size());
  EXPECT_TRUE(runner.label_windows(kGrid, nullptr, labels.data()));
  return labels;
}

Bytes resized_by(Runner& runner, int seed) {
  const Bytes pixels = picture({1, 19, 45}, seed);
  EXPECT_TRUE(runner.place_resized({1, 16, 24}, 0, {pixels.data(), 1, 19, 45}));
  return labels_of(runner.run({1, 16, 24}, nullptr, Wanted::labels), {1, 16, 24});
}

TEST_F(Pictures, FailuresOfTheDriverAreNamedAndNothingIsLost) {
  const auto plan = open();
  const auto good = plan->make_runner({});
  for (const auto& label : {windows_by, resized_by}) {
    for (const char* const function :
         {"MemAlloc", "MemHostAlloc", "MemcpyHtoDAsync", "MemcpyDtoDAsync", "MemcpyDtoHAsync", "LaunchKernelEx",
          "CtxPushCurrent", "CtxGetDevice", "StreamSynchronize", "EventRecord", "EventSynchronize", "Memcpy3DAsync"}) {
      if (label == resized_by && std::string(function) == "Memcpy3DAsync") continue;  // which it does not call
      const auto runner = plan->make_runner({});
      fake_cuda_fail(function, 719, 1);
      EXPECT_THROW(label(*runner, 1), RunError) << function;
      fake_cuda_fail(function, 0, 0);
      EXPECT_EQ(label(*runner, 1), label(*good, 1)) << function;
    }
  }
  fake_cuda_fail("LaunchKernelEx", 719, 1);
  expect_told("tensorrt: merge_windows_fp32_planar: cuLaunchKernelEx: A_FAKE_ERROR (719)",
              [&] { windows_by(*good, 1); });
  fake_cuda_fail("submit", 700, 1);
  expect_told("the network failed: the stream refused", [&] { windows_by(*plan->make_runner({}), 1); });
}

TEST_F(Pictures, WaitForNothingButRoomToBeUploadedFrom) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const ImageShape shape = {4, 16, 24};
  std::vector<Bytes> pixels;
  for (int seed = 0; seed < 4; ++seed) pixels.push_back(picture({1, 19, 45}, seed));
  const auto place = [&](std::int64_t b) {
    EXPECT_TRUE(runner->place_resized(shape, b, {pixels[static_cast<std::size_t>(b)].data(), 1, 19, 45}));
  };
  const auto labels = [&] { return labels_of(runner->run(shape, nullptr, Wanted::labels), shape); };
  for (std::int64_t b = 0; b < shape.B; ++b) place(b);
  const Bytes wanted = labels();

  fake_cuda_defer(1);
  const FakeCudaCounts before = fake_cuda_counts();
  std::vector<int> waiting;
  for (std::int64_t b = 0; b < shape.B; ++b) {
    place(b);
    waiting.push_back(fake_cuda_counts().waiting);
  }
  // the third and the fourth each for the upload of the one before the last, a copy and the mark behind it
  const int each = waiting[0];
  EXPECT_EQ(each, 5);  // those two, two passes and a copy to the network
  EXPECT_EQ(waiting, (std::vector<int>{each, 2 * each, 3 * each - 2, 3 * each - 2}));
  EXPECT_EQ(fake_cuda_counts().stream_waits, before.stream_waits);
  EXPECT_EQ(labels(), wanted);
  EXPECT_EQ(fake_cuda_counts().stream_waits, before.stream_waits + 1);  // for the labels
  EXPECT_EQ(fake_cuda_counts().allocations, before.allocations);
}

TEST_F(Pictures, WhatCannotBeLoadedIsLeftToTheCpuAndTold) {
  for (const char* const function :
       {"DriverGetVersion", "CtxGetDevice", "LibraryLoadData", "LibraryGetKernel", "KernelGetFunction",
        "KernelGetAttribute", "KernelGetParamInfo", "KernelSetAttribute"}) {
    Launcher launcher(kKernels);
    fake_cuda_fail(function, 3, 2);
    const auto plan = open(kPlan, manifest_of(kPlan), {}, launcher);
    fake_cuda_fail(function, 0, 0);
    for (const std::string& place : {plan->describe().windows_by, plan->describe().resized_by}) {
      EXPECT_EQ(place.rfind("the CPU: ", 0), 0U) << place;
      EXPECT_NE(place.find(std::string("cu") + function + ": A_FAKE_ERROR (3)"), std::string::npos) << place;
    }
    const auto runner = plan->make_runner({});
    EXPECT_EQ(runner->stage_picture(kGrid), nullptr);
    const Bytes pixels = picture({1, 19, 45}, 1);
    EXPECT_FALSE(runner->place_resized({1, 16, 24}, 0, {pixels.data(), 1, 19, 45}));
  }
}

TEST_F(Pictures, ParametersOfAnotherSizeThanTheManifestsAreFound) {
  // masks, labels, odd, eleven sides and three strides; then Triton's own two
  const std::array<const char*, 2> wanted = {"merge_windows_fp32_planar: parameter odd_ptr of 4 bytes, described as 8",
                                             "resize_u8: parameter weights_ptr of 4 bytes, described as 8"};
  Launcher launcher(kKernels);
  fake_cuda_tell_parameter(2, 4);
  const Description facts = open(kPlan, manifest_of(kPlan), {}, launcher)->describe();
  fake_cuda_tell_parameter(2, 0);
  EXPECT_EQ(facts.windows_by, std::string("the CPU: ") + wanted[0]);
  EXPECT_EQ(facts.resized_by, std::string("the CPU: ") + wanted[1]);
  fake_cuda_tell_parameter(19, 8);
  EXPECT_EQ(open(kPlan, manifest_of(kPlan), {}, launcher)->describe().windows_by,
            "the CPU: merge_windows_fp32_planar: more than the 19 parameters that are described");
  fake_cuda_tell_parameter(19, 0);
  EXPECT_EQ(open(kPlan, manifest_of(kPlan), {}, launcher)->describe().windows_by, "the GPU");
}

TEST_F(Pictures, WhatIsTooLargeIsLeftToTheCpu) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const int before = fake_cuda_counts().allocations;
  WindowGrid grid = kGrid;
  grid.H = grid.W = 1 << 20;  // pixels past 2^31
  EXPECT_EQ(runner->stage_picture(grid), nullptr);
  grid.H = grid.W = 4000;
  grid.stride = 1;  // masks past a gigabyte
  EXPECT_EQ(runner->stage_picture(grid), nullptr);
  grid = kGrid;
  grid.K = 40000;
  EXPECT_EQ(runner->stage_picture(grid), nullptr);
  EXPECT_FALSE(runner->place_resized({1, 16, 24}, 0, {nullptr, 1, 1 << 15, 1 << 15}));
  EXPECT_EQ(fake_cuda_counts().allocations, before);
}

TEST_F(Pictures, MasksThatWereNotPromisedAreLeftToTheCaller) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  WindowGrid grid = kGrid;
  grid.h = 4;
  Bytes labels(static_cast<std::size_t>(grid.H * grid.W), 99);
  const Bytes before = labels, pixels = picture({1, grid.H, grid.W}, 1);
  std::memcpy(runner->stage_picture(grid), pixels.data(), pixels.size());
  EXPECT_FALSE(runner->label_windows(grid, nullptr, labels.data()));
  EXPECT_EQ(labels, before);
  EXPECT_EQ(windows_by(*runner, 1), windows_by(*plan->make_runner({}), 1));
}

TEST_F(Pictures, WhatCannotBeCapturedRunsWithoutAGraph) {
  const auto plan = open();
  const auto runner = plan->make_runner({}), good = plan->make_runner({});
  fake_cuda_fail("StreamBeginCapture", 900, 1000);
  const int launches = fake_cuda_counts().launches;
  for (int seed = 0; seed < 3; ++seed) windows_by(*runner, seed);
  fake_cuda_fail("StreamBeginCapture", 0, 0);
  EXPECT_EQ(fake_cuda_counts().launches, launches);
  EXPECT_EQ(runner->no_graphs().rfind("images 2x24x24: beginning a capture: ", 0), 0U) << runner->no_graphs();
  EXPECT_EQ(windows_by(*runner, 5), windows_by(*good, 5));
}

TEST_F(Tensorrt, WithoutKernelsTheCpuDoesItAllAndTheEngineSaysWhy) {
  Launcher none(segmenter_launch::Kernels{{}, ""});
  const auto plan = open(kPlan, manifest_of(kPlan), {}, none);
  EXPECT_EQ(plan->describe().windows_by,
            "the CPU: this library was built without kernels that merge windows; name a folder of them in "
            "SEGMENTER_TRT_CUBINS");
  EXPECT_EQ(plan->describe().resized_by,
            "the CPU: this library was built without kernels that resize images; name a folder of them in "
            "SEGMENTER_TRT_CUBINS");
  const auto runner = plan->make_runner({});
  EXPECT_EQ(runner->stage_picture(kGrid), nullptr);
  const std::string blind = plan_of("fake 4 64 64 5 8");
  EXPECT_EQ(open(blind)->describe().windows_by, "the CPU: this plan gives no masks");
}

}  // namespace
}  // namespace segmenter_trt
