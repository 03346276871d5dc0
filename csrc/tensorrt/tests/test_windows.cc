// Pictures of any size through sessions on two GPUs of the fake driver: one does all of it by kernels, the other is too
// old for them and leaves it to the CPU. Labels are the same bits.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../tests/fake_engine.h"
#include "fake_plans.h"
#include "segmenter_trt/resize.h"
#include "segmenter_trt/sliding_window.h"

namespace segmenter_trt {
namespace {

constexpr int kNew = 0, kOld = 1;  // GPUs

struct Case {
  std::int64_t H, W, window, stride, batch;
};

// One window, windows beside each other, overlaps of two to nine on a pixel, a window of no whole patch, batches that
// the last windows do not fill.
constexpr Case kCases[] = {{24, 24, 24, 24, 1}, {48, 72, 24, 24, 2}, {24, 60, 24, 24, 4}, {53, 61, 24, 17, 3},
                           {53, 61, 23, 23, 1}, {60, 25, 20, 5, 4},  {40, 40, 30, 7, 4}};

Bytes noise(std::int64_t H, std::int64_t W, int seed = 0) {
  Bytes pixels(static_cast<std::size_t>(H * W * 3));
  std::uint32_t state = static_cast<std::uint32_t>(H * 4099 + W * 31 + seed + 1);
  for (std::uint8_t& value : pixels) value = static_cast<std::uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  // no window is one that scores no numbers
  for (std::size_t at = 0; at < pixels.size(); at += 3) pixels[at] = std::min<std::uint8_t>(pixels[at], 250);
  return pixels;
}

class Windows : public EngineTest {
 protected:
  void SetUp() override {
    fake_cuda_set_device(9, 0, 2);
    fake_cuda_defer(1);
    if (opened(kNew).describe().windows_by.find("built without kernels") != std::string::npos) {
      GTEST_SKIP() << "built without kernels: SEGMENTER_TRT_CUBINS names no folder of them";
    }
  }
  void TearDown() override {
    fake_cuda_defer(0);
    expect_all_given_back();
  }

  Engine opened(int device, int classes = 5, const std::string& input = "pixels",
                const std::string& batch = "[1, 1, 4]") const {
    const std::string words =
        "fake 4 64 64 " + std::to_string(classes) + " 8 masks " + input + (classes > 256 ? " int32" : "");
    Fake fake;
    fake.input = input;
    fake.height = fake.width = "[8, 24, 64]";
    fake.batch = batch;
    fake.patch = 8;
    fake.classes = classes;
    fake.bytes = plan_of(words);
    fake.preprocess = R"({"mean": [0, 0, 0], "std": [1, 1, 1]})";
    fake.versions =
        "{\"tensorrt\": \"" + std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + ".1.48\"}";
    EngineOptions options;
    options.runtime = FAKES;
    options.device = device;
    options.threads = 1;
    return open(fake, options);
  }
};

template <class Label>
std::vector<Label> labels_by(Session& session, const Bytes& pixels, const Case& one) {
  std::vector<Label> labels(static_cast<std::size_t>(one.H * one.W), Label{99});
  run_sliding_window(session, {pixels.data(), 1, one.H, one.W}, LabelsView<Label>{labels.data(), {one.H, one.W}},
                     {one.window, one.stride, one.batch});
  return labels;
}

template <class Label>
void expect_same_windows(const Engine& fast, const Engine& slow) {
  Session on_gpu(fast), on_cpu(slow);
  // again and again: graphs replace what they were captured from
  for (int round = 0; round < 3; ++round) {
    for (const Case& one : kCases) {
      const Bytes pixels = noise(one.H, one.W, round);
      EXPECT_EQ(labels_by<Label>(on_gpu, pixels, one), labels_by<Label>(on_cpu, pixels, one))
          << one.H << "x" << one.W << " by " << one.window;
    }
  }
  EXPECT_EQ(on_gpu.describe().no_graphs, "");
}

struct Allocations {
  int device, pinned;  // for the GPU's way
  int of_network;      // of each; the CPU's way wants them too
};

// One allocation after the other is refused to sessions that are new: each labels as the CPU does, keeps nothing of
// what it began with, and labels the next picture on the GPU.
void expect_left_to_the_cpu(const Engine& engine, const Allocations& wanted, std::string Description::*by,
                            const std::function<Bytes(Session&)>& label, const Bytes& labels) {
  for (const bool pinned : {false, true}) {
    const char* const function = pinned ? "MemHostAlloc" : "MemAlloc";
    int refused = 0;
    for (;; ++refused) {
      Session session(engine);
      const FakeCudaCounts before = fake_cuda_counts();
      fake_cuda_fail(function, 2, 1, refused);
      EXPECT_EQ(label(session), labels) << function << " " << refused;
      fake_cuda_fail(function, 0, 0);
      if (session.describe().*by == "the GPU") break;
      const FakeCudaCounts after = fake_cuda_counts();
      EXPECT_EQ(after.device_memory - before.device_memory, wanted.of_network) << function << " " << refused;
      EXPECT_EQ(after.pinned_memory - before.pinned_memory, wanted.of_network) << function << " " << refused;
      EXPECT_EQ(session.describe().*by, std::string("the CPU: ") + (pinned ? "pinned memory" : "GPU memory") +
                                            ": a fake error (CUDA error 2); the next picture is tried there again");
      EXPECT_EQ(label(session), labels) << function << " " << refused;
      EXPECT_EQ(session.describe().*by, "the GPU");
    }
    EXPECT_EQ(refused, pinned ? wanted.pinned : wanted.device) << function;
    // not even enough for the CPU's way
    Session session(engine);
    fake_cuda_fail(function, 2, 1000);
    expect_told("memory: a fake error (CUDA error 2)", [&] { label(session); });
    fake_cuda_fail(function, 0, 0);
    EXPECT_EQ(label(session), labels);
  }
}

TEST_F(Windows, AreMergedAsOnTheCpu) {
  for (const char* const input : {"pixels", "normalized"}) {
    expect_same_windows<std::uint8_t>(opened(kNew, 5, input), opened(kOld, 5, input));
  }
  expect_same_windows<std::uint8_t>(opened(kNew, 1), opened(kOld, 1));
  expect_same_windows<std::uint8_t>(opened(kNew, 256), opened(kOld, 256));
}

TEST_F(Windows, OfManyClassesAreMergedAsOnTheCpu) {
  expect_same_windows<std::int16_t>(opened(kNew, 257), opened(kOld, 257));
}

TEST_F(Windows, FillUpABatchTheEngineCannotSplit) {
  Session on_gpu(opened(kNew, 5, "pixels", "[4, 4, 4]")), on_cpu(opened(kOld));
  for (const Case& one : kCases) {
    const Bytes pixels = noise(one.H, one.W);
    EXPECT_EQ(labels_by<std::uint8_t>(on_gpu, pixels, one), labels_by<std::uint8_t>(on_cpu, pixels, one));
  }
}

TEST_F(Windows, TheEngineTellsWhereTheyAreMerged) {
  const Description fast = opened(kNew).describe(), slow = opened(kOld).describe();
  EXPECT_EQ(fast.windows_by, "the GPU");
  EXPECT_EQ(fast.resized_by, "the GPU");
  EXPECT_EQ(
      slow.windows_by.rfind("the CPU: GPU of compute capability 7.5: merge_windows_fp32_planar was compiled for ", 0),
      0U)
      << slow.windows_by;
  EXPECT_EQ(slow.resized_by.rfind("the CPU: GPU of compute capability 7.5: resize_u8 was compiled for ", 0), 0U)
      << slow.resized_by;
  const Description normalized = opened(kNew, 5, "normalized").describe();
  EXPECT_EQ(normalized.windows_by, "the GPU");
  EXPECT_EQ(normalized.resized_by, "the GPU");
}

TEST_F(Windows, ASecondPictureOfASizeAllocatesNothingAndLaterOnesReplayGraphs) {
  Session session(opened(kNew));
  const Case one = {40, 61, 24, 17, 3};
  labels_by<std::uint8_t>(session, noise(40, 61), one);
  const FakeCudaCounts first = fake_cuda_counts();
  labels_by<std::uint8_t>(session, noise(40, 61, 1), one);
  const FakeCudaCounts second = fake_cuda_counts();
  EXPECT_EQ(second.allocations, first.allocations);
  EXPECT_EQ(second.stream_waits - first.stream_waits, 1);  // for the labels
  EXPECT_EQ(second.launches - first.launches, 3);          // of eight windows: 3, 3 and 2
  EXPECT_EQ(second.captures - first.captures, 1);  // of the 2, which came again; the 3 came twice in the first picture
  // smaller pictures, in the same memory
  labels_by<std::uint8_t>(session, noise(40, 50), {40, 50, 24, 17, 3});
  EXPECT_EQ(fake_cuda_counts().allocations, second.allocations);
}

TEST_F(Windows, WhatIsNoNumberIsToldAsOnTheCpu) {
  Bytes pixels = noise(53, 61);
  const Case one = {53, 61, 24, 17, 3};
  // the first pixel of the window at 17, 34
  std::fill_n(pixels.begin() + (17 * 61 + 34) * 3, 3, std::uint8_t{255});
  std::string by[2];
  for (const int device : {kNew, kOld}) {
    Session session(opened(device));
    by[device] = told<RunError>([&] { labels_by<std::uint8_t>(session, pixels, one); });
    EXPECT_EQ(labels_by<std::uint8_t>(session, noise(53, 61), one).size(), 53U * 61U);
  }
  EXPECT_EQ(by[kNew], by[kOld]);
  EXPECT_EQ(by[kNew].rfind("window at 17, 34: masks[0, 0, 0, 0] is nan: wanted finite scores", 0), 0U) << by[kNew];
}

TEST_F(Windows, ThatMemoryIsTooShortForAreLeftToTheCpu) {
  const Case one = {40, 61, 24, 17, 3};  // eight windows: 3, 3 and 2
  const Bytes pixels = noise(40, 61);
  for (const bool normalized : {false, true}) {
    const char* const input = normalized ? "normalized" : "pixels";
    const Engine engine = opened(kNew, 5, input);
    Session on_cpu(opened(kOld, 5, input));
    const Bytes wanted = labels_by<std::uint8_t>(on_cpu, pixels, one);
    // of the picture and, last, of images, labels and masks of 3 windows; those of 2 are given theirs where it is short
    expect_left_to_the_cpu(
        engine, {normalized ? 9 : 7, normalized ? 7 : 6, 6}, &Description::windows_by,
        [&](Session& session) { return labels_by<std::uint8_t>(session, pixels, one); }, wanted);
  }
}

TEST_F(Windows, PicturesThatMemoryIsTooShortForAreResizedOnTheCpu) {
  const Bytes pixels = noise(37, 50), small = noise(9, 13);
  const ImagesView pictures[] = {{small.data(), 1, 9, 13}, {pixels.data(), 1, 37, 50}};
  const auto label = [&](Session& session) {
    Bytes labels(2 * 11 * 16, 99);
    session.run_resized(pictures, LabelsView<std::uint8_t>{labels.data(), {11, 16}});
    return labels;
  };
  for (const bool normalized : {false, true}) {
    const char* const input = normalized ? "normalized" : "pixels";
    Session on_cpu(opened(kOld, 5, input));
    // images, labels and masks; then each picture, its two filters, and two passes, of which one grows for the second
    expect_left_to_the_cpu(opened(kNew, 5, input), {normalized ? 13 : 12, normalized ? 10 : 9, 3},
                           &Description::resized_by, label, label(on_cpu));
  }
}

TEST_F(Windows, MayBeStoppedBetweenCallsOfTheNetwork) {
  for (const bool shared : {false, true}) {
    const Engine engine = opened(kNew);
    Session session(engine, {.shared_workspace = shared}), other(engine, {.shared_workspace = shared});
    const Bytes pixels = noise(53, 61);
    Bytes labels(53 * 61);
    int calls = 0;
    WindowOptions options = {24, 17, 2, [&] { ++calls; }};
    const auto run = [&](Session& by) {
      run_sliding_window(by, {pixels.data(), 1, 53, 61}, LabelsView<std::uint8_t>{labels.data(), {53, 61}}, options);
      return labels;
    };
    const Bytes whole = run(session);
    EXPECT_EQ(calls, 5);  // before all but the first of six calls, for twelve windows
    options.between = [] { throw std::runtime_error("stopped"); };
    EXPECT_THROW(run(session), std::runtime_error);
    EXPECT_EQ(fake_cuda_counts().waiting, 0);  // or the other would compute in memory that is in use
    options.between = nullptr;
    EXPECT_EQ(run(other), whole);
    EXPECT_EQ(run(session), whole);
  }
}

TEST_F(Windows, LeaveTheirTurnToOthersBetweenCallsOfTheNetwork) {
  const Engine engine = opened(kNew);
  Session session(engine, {.shared_workspace = true}), other(engine, {.shared_workspace = true});
  const Case one = {53, 61, 24, 17, 2};
  const Bytes pixels = noise(53, 61), small = noise(24, 24, 1);
  const Bytes whole = labels_by<std::uint8_t>(session, pixels, one);
  const Bytes wanted = labels_by<std::uint8_t>(other, small, {24, 24, 24, 24, 1});
  int calls = 0;
  const WindowOptions options = {24, 17, 2, [&] {
                                   ++calls;
                                   EXPECT_EQ(labels_by<std::uint8_t>(other, small, {24, 24, 24, 24, 1}), wanted);
                                 }};
  Bytes labels(whole.size());
  run_sliding_window(session, {pixels.data(), 1, 53, 61}, LabelsView<std::uint8_t>{labels.data(), {53, 61}}, options);
  EXPECT_EQ(labels, whole);
  EXPECT_EQ(calls, 5);
}

struct Resized {
  std::int64_t H, W;
  Size to;
};

// Larger, smaller, one side of each, columns first, one side that stays, one pixel, the engine's own.
constexpr Resized kResized[] = {{9, 13, {17, 31}}, {37, 50, {11, 16}}, {20, 31, {33, 12}},
                                {61, 20, {8, 18}}, {12, 40, {12, 25}}, {40, 12, {25, 12}},
                                {1, 1, {8, 9}},    {24, 24, {24, 24}}, {3, 500, {16, 64}}};

TEST_F(Windows, PicturesAreResizedAsOnTheCpu) {
  for (const char* const input : {"pixels", "normalized"}) {
    Session on_gpu(opened(kNew, 5, input)), on_cpu(opened(kOld, 5, input));
    for (int round = 0; round < 3; ++round) {
      for (const auto& [H, W, to] : kResized) {
        const Bytes pixels = noise(H, W, round);
        Bytes resized(static_cast<std::size_t>(to.height * to.width * 3)), wanted(resized.size() / 3);
        Bytes fast(wanted.size()), slow(wanted.size());
        const ImagesView picture = {pixels.data(), 1, H, W};
        resize(picture, {resized.data(), to.height, to.width});
        on_gpu.run_resized({&picture, 1}, LabelsView<std::uint8_t>{fast.data(), to});
        on_cpu.run_resized({&picture, 1}, LabelsView<std::uint8_t>{slow.data(), to});
        on_cpu.run({resized.data(), 1, to.height, to.width}, LabelsView<std::uint8_t>{wanted.data(), to});
        EXPECT_EQ(fast, wanted) << H << "x" << W << " to " << to.height << "x" << to.width;
        EXPECT_EQ(slow, wanted);
      }
    }
  }
}

TEST_F(Windows, PicturesOfManySizesGoIntoOneCall) {
  Session on_gpu(opened(kNew)), on_cpu(opened(kOld));
  std::vector<Bytes> all;
  for (int i = 0; i < 40; ++i) all.push_back(noise(10 + i, 60 - i, i));
  for (int first = 0; first < 40; first += 4) {
    std::vector<ImagesView> pictures;
    for (int i = first; i < first + 4; ++i)
      pictures.push_back({all[static_cast<std::size_t>(i)].data(), 1, 10 + i, 60 - i});
    Bytes fast(4 * 20 * 28), slow(fast.size());
    on_gpu.run_resized(pictures, LabelsView<std::uint8_t>{fast.data(), {20, 28}});
    on_cpu.run_resized(pictures, LabelsView<std::uint8_t>{slow.data(), {20, 28}});
    EXPECT_EQ(fast, slow) << "from " << first;
  }
  // and between them the other ways to labels
  const Case one = {53, 61, 24, 17, 3};
  EXPECT_EQ(labels_by<std::uint8_t>(on_gpu, noise(53, 61), one), labels_by<std::uint8_t>(on_cpu, noise(53, 61), one));
  const Bytes pixels = noise(20, 28);
  Bytes fast(20 * 28), slow(fast.size());
  on_gpu.run({pixels.data(), 1, 20, 28}, LabelsView<std::uint8_t>{fast.data(), {20, 28}});
  on_cpu.run({pixels.data(), 1, 20, 28}, LabelsView<std::uint8_t>{slow.data(), {20, 28}});
  EXPECT_EQ(fast, slow);
}

TEST_F(Windows, PicturesThatCannotBeResizedAreNamed) {
  Session session(opened(kNew));
  const Bytes pixels = noise(10, 10);
  Bytes labels(16 * 16);
  const auto refused = [&](const std::vector<ImagesView>& pictures, Size size) {
    return told<InputError>([&] { session.run_resized(pictures, LabelsView<std::uint8_t>{labels.data(), size}); });
  };
  EXPECT_EQ(refused({}, {16, 16}), "batch of 0: this engine takes at least 1; fill it up");
  EXPECT_EQ(refused({{pixels.data(), 1, 10, 10}}, {4, 16}), "image 4x16: this engine takes 8x8 to 64x64; resize it");
  EXPECT_EQ(refused({{nullptr, 1, 10, 10}}, {16, 16}),
            "pictures to resize: wanted a pointer to uint8 RGB [1, H, W, 3] for each");
  EXPECT_EQ(refused({{pixels.data(), 2, 5, 10}}, {16, 16}),
            "pictures to resize: wanted a pointer to uint8 RGB [1, H, W, 3] for each");
  EXPECT_NE(refused({{pixels.data(), 1, 0, 10}}, {16, 16}).find("size 0x10"), std::string::npos);
}

}  // namespace
}  // namespace segmenter_trt
