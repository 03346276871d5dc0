// What TensorRT-RTX needs besides: kernels that a graph may keep, and its word on whether it can be captured.
#include <dlfcn.h>

#include <string>

#include "fake_kernels.h"
#include "fake_plans.h"

namespace segmenter_trt {
namespace {

class TensorrtRtx : public Tensorrt {
 protected:
  // What the fake did since the test began.
  FakeKernels done() const {
    const FakeKernels now = told();
    return {now.lazy - before_.lazy, now.fixed - before_.fixed, now.compiled - before_.compiled};
  }

 private:
  static FakeKernels told() {
    void* const library = dlopen(FAKES "/libtensorrt_rtx.so.1", RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<decltype(&fake_kernels)>(dlsym(library, "fake_kernels"))();
  }

  const FakeKernels before_ = told();
};

// Labels of so many calls, which shall be those of each call's image; returns how many of them were graphs.
int graphs_in(Runner& runner, int calls, const ImageShape& shape = kShape) {
  const int launches = fake_cuda_counts().launches;
  for (int call = 0; call < calls; ++call) {
    const Bytes pixels = picture(shape, call);
    EXPECT_EQ(labels_of(runner.run(shape, pixels.data(), Wanted::labels), shape), expected(pixels)) << "call " << call;
  }
  return fake_cuda_counts().launches - launches;
}

TEST_F(TensorrtRtx, GraphsAreOfKernelsThatStay) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  EXPECT_EQ(graphs_in(*runner, 4), 3);
  EXPECT_EQ(graphs_in(*runner, 3, {1, 8, 16}), 2);
  EXPECT_EQ(runner->no_graphs(), "");
  const FakeKernels kernels = done();
  EXPECT_EQ(kernels.fixed, 3);  // of the session, and of each graph
  EXPECT_EQ(kernels.lazy, 0);
  EXPECT_EQ(kernels.compiled, 2);  // once for a shape, whatever the contexts
}

TEST_F(TensorrtRtx, WithoutGraphsNoCallWaitsForKernels) {
  const auto plan = open();
  SessionOptions options;
  options.graphs = false;
  const auto runner = plan->make_runner(options);
  EXPECT_EQ(graphs_in(*runner, 3), 0);
  EXPECT_EQ(done().lazy, 1);
  EXPECT_EQ(done().fixed, 0);
  // both kinds in one engine
  EXPECT_EQ(graphs_in(*plan->make_runner({}), 3), 2);
  EXPECT_EQ(done().fixed, 2);
}

TEST_F(TensorrtRtx, WhatSaysThatItCannotBeCapturedIsNot) {
  const auto plan = open(plan_of("fake 4 64 64 5 8 masks uncapturable"));
  const auto runner = plan->make_runner({});
  const int captures = fake_cuda_counts().captures;
  EXPECT_EQ(graphs_in(*runner, 4), 0);
  EXPECT_EQ(fake_cuda_counts().captures, captures);
  EXPECT_EQ(runner->no_graphs(), "images 2x16x24: tensorrt-rtx says that this plan cannot be captured");
}

}  // namespace
}  // namespace segmenter_trt
