// The TensorRT backend without a GPU: every path to the driver and to TensorRT, and what goes wrong on it.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fake_plans.h"
#include "owners.h"

namespace segmenter_trt {
namespace {

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
  EXPECT_EQ(runner->no_graphs(), "");
  EXPECT_EQ(without->no_graphs(), "opened without them");
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

TEST_F(Tensorrt, ANewShapeIsGivenTheMemoryOfTheOldest) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const auto label = [&](std::int64_t side) {
    const ImageShape shape = {1, 4 * side, 64 - side};
    const Bytes pixels = picture(shape, static_cast<int>(side));
    EXPECT_EQ(labels_of(runner->run(shape, pixels.data(), Wanted::labels), shape), expected(pixels)) << side;
  };
  std::int64_t side = 1;
  for (; side <= 8; ++side) label(side);
  // no memory for more than there are, be they as many as a session keeps, or fewer
  fake_cuda_limit_memory(fake_cuda_counts().device_memory);
  for (; side <= 10; ++side) label(side);
  for (const int fewer : {3, 9, 3}) {
    fake_cuda_limit_memory(fake_cuda_counts().device_memory - fewer);
    label(++side);
    label(side);
  }
  EXPECT_EQ(fake_cuda_counts().pinned_memory, 3 * 3);  // of eight shapes: five were given up
  // nor for one alone
  fake_cuda_limit_memory(2);
  expect_told("GPU memory: a fake error (CUDA error 2)", [&] { label(1); });
  EXPECT_EQ(fake_cuda_counts().pinned_memory, 0);
  fake_cuda_limit_memory(0);
  label(1);
}

TEST_F(Tensorrt, MemoryIsGivenUpWhenTheCallersStreamHasPassedIt) {
  const auto plan = open();
  const auto runner = plan->make_runner({});
  const cuda::Driver& driver = cuda::driver();
  const cuda::Current current(driver, plan->context());
  const Bytes pixels = picture(kShape, 5), other = picture({1, 8, 16}, 6);
  const cuda::DeviceMemory images = cuda::device_memory(driver, pixels.size());
  const cuda::DeviceMemory labels = cuda::device_memory(driver, pixels.size() / 3);
  std::memcpy(cuda::pointer(images.get()), pixels.data(), pixels.size());
  const cuda::Stream stream = cuda::stream(driver);
  fake_cuda_defer(1);
  // its masks go into memory of the session's
  runner->enqueue(kShape, cuda::pointer(images.get()), cuda::pointer(labels.get()), stream.get());
  fake_cuda_limit_memory(fake_cuda_counts().device_memory);
  EXPECT_EQ(labels_of(runner->run({1, 8, 16}, other.data(), Wanted::labels), {1, 8, 16}), expected(other));
  EXPECT_EQ(fake_cuda_counts().waiting, 0);
  const auto* const found = reinterpret_cast<const std::uint8_t*>(labels.get());
  EXPECT_EQ(Bytes(found, found + pixels.size() / 3), expected(pixels));
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
  std::memcpy(cuda::pointer(images.get()), pixels.data(), pixels.size());
  const cuda::Stream stream = cuda::stream(driver);
  const auto enqueue = [&] {
    runner->enqueue(kShape, cuda::pointer(images.get()), cuda::pointer(labels.get()), stream.get());
    const auto* const found = reinterpret_cast<const std::uint8_t*>(labels.get());
    return Bytes(found, found + pixels.size() / 3);
  };
  EXPECT_EQ(enqueue(), expected(pixels));
  // between calls on the host, whose graph must keep its own addresses
  for (int call = 0; call < 3; ++call) {
    EXPECT_EQ(labels_of(runner->run(kShape, other.data(), Wanted::labels), kShape), expected(other));
    EXPECT_EQ(enqueue(), expected(pixels));
  }
  alignas(256) static std::uint8_t host[1];
  expect_told("an address that is not the device's",
              [&] { runner->enqueue(kShape, host, cuda::pointer(labels.get()), stream.get()); });
  expect_told("images on the GPU begin 3 bytes past a multiple of 256", [&] {
    runner->enqueue(kShape, cuda::pointer(images.get() + 3), cuda::pointer(labels.get()), stream.get());
  });
  expect_told("labels on the GPU begin 16 bytes past a multiple of 256", [&] {
    runner->enqueue(kShape, cuda::pointer(images.get()), cuda::pointer(labels.get() + 16), stream.get());
  });
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

TEST_F(Tensorrt, ACallThatFailsLeavesNothingUnderWay) {
  struct Failure {
    const char* function;
    int calls, good;  // before the one that fails, and of the function in that
  };
  // the network at its first and at its second work, replayed and not; results on their way back
  const Failure failures[] = {{"submit", 0, 0},          {"submit", 0, 1},          {"MemcpyDtoHAsync", 0, 0},
                              {"MemcpyDtoHAsync", 0, 1}, {"MemcpyDtoHAsync", 1, 0}, {"GraphLaunch", 1, 0}};
  const auto plan = open();
  const Bytes pixels = picture(kShape, 9);
  for (const bool shared : {true, false}) {
    for (const auto& [function, calls, good] : failures) {
      fake_cuda_defer(1);
      SessionOptions options;
      options.shared_workspace = shared;
      const auto runner = plan->make_runner(options);
      for (int call = 0; call < calls; ++call) runner->run(kShape, pixels.data(), Wanted::labels);
      fake_cuda_fail(function, 719, 2, good);  // also without a graph, which is tried then
      EXPECT_THROW(runner->run(kShape, pixels.data(), Wanted::labels), RunError) << function;
      fake_cuda_fail(function, 0, 0);
      // whoever takes the next turn has the memory for itself
      EXPECT_EQ(fake_cuda_counts().waiting, 0) << function << " " << calls << " " << good;
      EXPECT_EQ(labels_of(runner->run(kShape, pixels.data(), Wanted::labels), kShape), expected(pixels)) << function;
    }
  }
}

TEST_F(Tensorrt, WhatAFailedEnqueueLeavesOnAStreamIsWaitedFor) {
  const std::pair<const char*, int> failures[] = {{"submit", 1}, {"EventRecord", 0}, {"EventRecord", 1}};
  const auto plan = open();
  const cuda::Driver& driver = cuda::driver();
  const cuda::Current current(driver, plan->context());
  const Bytes pixels = picture(kShape, 5), other = picture(kShape, 6);
  const cuda::DeviceMemory images = cuda::device_memory(driver, pixels.size());
  const cuda::DeviceMemory labels = cuda::device_memory(driver, pixels.size() / 3);
  std::memcpy(cuda::pointer(images.get()), pixels.data(), pixels.size());
  SessionOptions options;
  options.shared_workspace = true;
  for (const auto& [function, good] : failures) {
    for (const char* const next : {"its own session", "another session", "none"}) {
      fake_cuda_defer(1);
      const cuda::Stream stream = cuda::stream(driver);
      auto runner = plan->make_runner(options);
      const auto another = plan->make_runner(options);
      fake_cuda_fail(function, 719, 1, good);
      EXPECT_THROW(runner->enqueue(kShape, cuda::pointer(images.get()), cuda::pointer(labels.get()), stream.get()),
                   RunError)
          << function << " " << good;
      fake_cuda_fail(function, 0, 0);
      if (next == std::string("none")) {
        runner.reset();
      } else {
        Runner& by = next == std::string("another session") ? *another : *runner;
        EXPECT_EQ(labels_of(by.run(kShape, other.data(), Wanted::labels), kShape), expected(other));
      }
      // but for a mark behind it
      EXPECT_LE(fake_cuda_counts().waiting, 1) << function << " " << good << ", then " << next;
    }
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
  const std::pair<const char*, const char*> reasons[] = {
      {"StreamBeginCapture", "beginning a capture: "},
      {"StreamEndCapture", "ending a capture: "},
      {"GraphInstantiateWithFlags", "making a graph: "},
      {"submit", "the network failed: the stream refused"},
  };
  for (const auto& [function, reason] : reasons) {
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
    EXPECT_EQ(runner->no_graphs().rfind("images 2x16x24: ", 0), 0u) << runner->no_graphs();
    EXPECT_NE(runner->no_graphs().find(reason), std::string::npos) << runner->no_graphs();
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

TEST_F(Tensorrt, FactsForReports) {
  const Description facts = open()->describe();
  EXPECT_EQ(facts.engine, "tensorrt");
  EXPECT_EQ(facts.device, "Fake GPU");
  EXPECT_EQ(facts.runtime.rfind("tensorrt 10.", 0), 0u);
}

}  // namespace
}  // namespace segmenter_trt
