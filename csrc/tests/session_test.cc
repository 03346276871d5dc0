// A session around a network whose answers are known: labels, errors, threads.
#include "segmenter_trt/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "fake_engine.h"
#include "segmenter_trt/errors.h"
#include "segmenter_trt/resize.h"

namespace segmenter_trt {
namespace {

using Bytes = std::vector<std::uint8_t>;

// Pictures whose red rises from left to right: the fake network finds class after class.
Bytes pictures(std::int64_t B, std::int64_t H, std::int64_t W) {
  Bytes pixels(static_cast<std::size_t>(B * H * W * 3));
  for (std::size_t i = 0; i < pixels.size(); ++i) {
    const auto x = static_cast<std::int64_t>(i / 3) % W;
    pixels[i] = static_cast<std::uint8_t>(i % 3 == 0 ? x * 45 / W + static_cast<std::int64_t>(i) % 7 : i % 251);
  }
  return pixels;
}

template <class Label>
std::vector<Label> run(Session& session, const Bytes& pixels, std::int64_t B, std::int64_t H, std::int64_t W) {
  std::vector<Label> labels(static_cast<std::size_t>(B * H * W), Label{99});
  session.run({pixels.data(), B, H, W}, LabelsView<Label>{labels.data(), {H, W}});
  return labels;
}

// The first largest of the session's own logits.
std::vector<int> by_logits(Session& session, const Bytes& pixels, std::int64_t B, std::int64_t H, std::int64_t W) {
  const std::int64_t K = session.engine().manifest().K();
  std::vector<float> logits(static_cast<std::size_t>(B * K * H * W));
  session.logits({pixels.data(), B, H, W}, logits.data());
  std::vector<int> labels;
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t i = 0; i < H * W; ++i) {
      std::int64_t best = 0;
      const auto score = [&](std::int64_t k) { return logits[static_cast<std::size_t>((b * K + k) * H * W + i)]; };
      for (std::int64_t k = 1; k < K; ++k) best = score(k) > score(best) ? k : best;
      labels.push_back(static_cast<int>(best));
    }
  }
  return labels;
}

class SessionTest : public EngineTest {};

TEST_F(SessionTest, LabelsAreThoseOfItsLogits) {
  for (const char* input : {"normalized", "pixels"}) {
    Session session(open({.input = input}));
    // twelve shapes: more than a session remembers
    for (int round = 0; round < 24; ++round) {
      const std::int64_t B = 1 + round % 2, H = 13 + round % 12, W = 30 - round % 12;
      const Bytes pixels = pictures(B, H, W);
      const auto labels = run<std::uint8_t>(session, pixels, B, H, W);
      EXPECT_EQ(std::vector<int>(labels.begin(), labels.end()), by_logits(session, pixels, B, H, W));
    }
  }
}

TEST_F(SessionTest, RemembersNothingOfTheImageBefore) {
  Session session(open({}, {.threads = 2}));
  Bytes pixels = pictures(1, 7, 30);
  for (int round = 0; round < 6; ++round) {
    for (std::uint8_t& colour : pixels) colour = static_cast<std::uint8_t>((colour + 11 * round) % 50);
    // one row of cells, and a few
    for (const std::int64_t H : {3, 7}) {
      const auto labels = run<std::uint8_t>(session, pixels, 1, H, 30);
      EXPECT_EQ(std::vector<int>(labels.begin(), labels.end()), by_logits(session, pixels, 1, H, 30));
    }
  }
}

TEST_F(SessionTest, LabelsPicturesOfOtherSizesResized) {
  const Bytes large = pictures(1, 40, 70), small = pictures(1, 9, 11), fitting = pictures(1, 16, 20);
  const ImagesView all[] = {{large.data(), 1, 40, 70}, {small.data(), 1, 9, 11}, {fitting.data(), 1, 16, 20}};
  for (const char* input : {"normalized", "pixels"}) {
    Session session(open({.input = input}));
    Bytes resized(3 * 16 * 20 * 3);
    for (std::size_t i = 0; i < 3; ++i) resize(all[i], {resized.data() + i * 960, 16, 20});
    const Bytes expected = run<std::uint8_t>(session, resized, 3, 16, 20);
    for (int round = 0; round < 2; ++round) {
      Bytes labels(expected.size(), 99);
      session.run_resized(all, LabelsView<std::uint8_t>{labels.data(), {16, 20}});
      EXPECT_EQ(labels, expected);
    }
    EXPECT_EQ(session.describe().resized_by, "the CPU");
    EXPECT_EQ(session.describe().windows_by, "the CPU");
  }
}

TEST_F(SessionTest, FindsTheClassesThatAreThere) {
  Session session(open({}));
  const auto labels = run<std::uint8_t>(session, pictures(1, 16, 200), 1, 16, 200);
  EXPECT_EQ(labels.front(), 0);
  EXPECT_EQ(labels.back(), 4);
}

TEST_F(SessionTest, ManyClassesAreInt16) {
  Session session(open({.classes = 300}));
  const Bytes pixels = pictures(2, 17, 30);
  const auto labels = run<std::int16_t>(session, pixels, 2, 17, 30);
  EXPECT_EQ(std::vector<int>(labels.begin(), labels.end()), by_logits(session, pixels, 2, 17, 30));
  EXPECT_NE(told<InputError>([&] { run<std::uint8_t>(session, pixels, 2, 17, 30); }).find("300 classes; pass int16"),
            std::string::npos);
}

TEST_F(SessionTest, TakesTheGraphsLabels) {
  Session session(open({.model = "fake labels"}));
  EXPECT_EQ(run<std::uint8_t>(session, pictures(2, 8, 9), 2, 8, 9), Bytes(144, 3));
}

TEST_F(SessionTest, MasksOfNormalizedImages) {
  Session session(open({}));
  std::vector<float> planes(3 * 16 * 16);
  std::iota(planes.begin(), planes.end(), 0.0f);
  const MasksView masks = session.masks(NormalizedView{planes.data(), 1, 16, 16});
  EXPECT_EQ(masks.K, 5);
  EXPECT_EQ(masks.h, 4);
  Session pixels(open({.input = "pixels"}));
  EXPECT_NE(told<InputError>([&] {
              pixels.masks(NormalizedView{planes.data(), 1, 16, 16});
            }).find("takes pixels"),
            std::string::npos);
  Session blind(open({.model = "fake labels", .outputs = R"(["labels"])"}));
  EXPECT_NE(told<InputError>([&] {
              blind.masks(NormalizedView{planes.data(), 1, 16, 16});
            }).find("gives no masks"),
            std::string::npos);
}

TEST_F(SessionTest, RefusesWhatItDoesNotTake) {
  Session session(open({.height = "[16, 16, 16]", .width = "[20, 20, 20]", .batch = "[2, 2, 3]"}));
  Session flexible(open({}));
  const Bytes pixels = pictures(4, 20, 20);
  Bytes labels(pixels.size());
  const auto refused = [&](Session& by, ImagesView images, LabelsView<std::uint8_t> into) {
    return told<InputError>([&] { by.run(images, into); });
  };
  EXPECT_EQ(refused(session, {pixels.data(), 2, 20, 20}, {labels.data(), {20, 20}}),
            "image 20x20: this engine takes 16x20; resize it, or export again with --height 20 --width 20");
  EXPECT_EQ(refused(session, {pixels.data(), 2, 3, 20}, {labels.data(), {3, 20}}),
            "image 3x20: this engine takes 16x20; resize it");
  EXPECT_EQ(refused(session, {pixels.data(), 2, 65537, 20}, {labels.data(), {65537, 20}}),
            "image 65537x20: this engine takes 16x20; resize it");
  EXPECT_EQ(refused(session, {pixels.data(), 2, 65536, 20}, {labels.data(), {65536, 20}}),
            "image 65536x20: this engine takes 16x20; resize it, or export again with --height 65536 --width 20");
  EXPECT_EQ(refused(flexible, {pixels.data(), 1, 513, 20}, {labels.data(), {513, 20}}),
            "image 513x20: this engine takes 1x1 to 512x512; resize it");
  EXPECT_EQ(refused(flexible, {pixels.data(), 1, 0, 20}, {labels.data(), {0, 20}}),
            "image 0x20: this engine takes 1x1 to 512x512; resize it");
  EXPECT_EQ(refused(session, {pixels.data(), 1, 16, 20}, {labels.data(), {16, 20}}),
            "batch of 1: this engine takes at least 2; fill it up");
  EXPECT_EQ(refused(session, {pixels.data(), 4, 16, 20}, {labels.data(), {16, 20}}),
            "batch of 4: this engine takes at most 3; split it");
  EXPECT_EQ(refused(session, {pixels.data(), -1, 16, 20}, {labels.data(), {16, 20}}),
            "batch of -1: this engine takes at least 2; fill it up");
  EXPECT_EQ(refused(session, {pixels.data(), 2, 16, 20}, {labels.data(), {20, 16}}),
            "labels 20x16: wanted memory for 16x20, the images' size");
  refused(session, {pixels.data(), 2, 16, 20}, {nullptr, {16, 20}});
  refused(session, {nullptr, 2, 16, 20}, {labels.data(), {16, 20}});
  EXPECT_THROW(session.logits({pixels.data(), 2, 16, 20}, nullptr), InputError);
  EXPECT_THROW(Session(open({}), {.threads = -1}), InputError);
  // and works on
  session.run({pixels.data(), 2, 16, 20}, LabelsView<std::uint8_t>{labels.data(), {16, 20}});
}

TEST_F(SessionTest, SaysWhenScoresAreNoNumbers) {
  const Bytes pixels = pictures(1, 16, 16);
  Session own(open({.model = "broken"}));
  EXPECT_NE(
      told<RunError>([&] { run<std::uint8_t>(own, pixels, 1, 16, 16); }).find("tensorrt-fp32, broken: masks[0, 4"),
      std::string::npos);
  // those who ask for scores are given them as they are
  const auto odd = [](float score) { return !std::isfinite(score); };
  const MasksView masks = own.masks({pixels.data(), 1, 16, 16});
  EXPECT_TRUE(std::any_of(masks.data, masks.data + masks.K * masks.h * masks.w, odd));
  std::vector<float> logits(5 * 16 * 16);
  own.logits({pixels.data(), 1, 16, 16}, logits.data());
  EXPECT_TRUE(std::any_of(logits.begin(), logits.end(), odd));
  Session graph(open({.model = "broken labels"}));
  EXPECT_NE(told<RunError>([&] { run<std::uint8_t>(graph, pixels, 1, 16, 16); }).find("scores that are no numbers"),
            std::string::npos);
}

TEST_F(SessionTest, NamesTheEngineThatFails) {
  Session session(open({.model = "fails"}));
  EXPECT_EQ(told<RunError>([&] { run<std::uint8_t>(session, pictures(1, 8, 8), 1, 8, 8); }),
            "tensorrt-fp32, fails: out of fuel");
}

TEST_F(SessionTest, EnqueuesOnTheDevice) {
  Session session(open({}));
  const Bytes pixels = pictures(1, 16, 16);
  std::vector<std::int64_t> labels(32);
  bool used = false;
  session.enqueue({pixels.data(), 1, 16, 16}, labels.data(), &used);
  EXPECT_TRUE(used);
  EXPECT_EQ(labels[0], 16);
  EXPECT_THROW(session.enqueue({pixels.data(), 1, 16, 16}, nullptr, &used), InputError);
}

TEST_F(SessionTest, OutlivesTheEngineItWasMadeOf) {
  Session moved = [&] {
    Session session(open({}));
    return session;
  }();
  const Bytes pixels = pictures(1, 16, 16);
  const auto labels = run<std::uint8_t>(moved, pixels, 1, 16, 16);
  Session other(open({}));
  moved = std::move(other);
  EXPECT_EQ(run<std::uint8_t>(moved, pixels, 1, 16, 16), labels);
}

TEST_F(SessionTest, RefusesMasksItsManifestDoesNotPromise) {
  const Bytes pixels = pictures(1, 16, 16);
  std::vector<float> logits(16 * 16 * 300);
  for (const char* const model : {"other classes", "other grid", "other classes labels"}) {
    Session session(open({.model = model}));
    EXPECT_NE(
        told<RunError>([&] { run<std::uint8_t>(session, pixels, 1, 16, 16); }).find("its manifest promises others"),
        std::string::npos)
        << model;
    EXPECT_THROW(session.logits({pixels.data(), 1, 16, 16}, logits.data()), RunError) << model;
    EXPECT_THROW(session.masks(ImagesView{pixels.data(), 1, 16, 16}), RunError) << model;
  }
}

TEST_F(SessionTest, EightThreadsOfOneEngineAgreeWithOne) {
  const Engine engine = open({});
  const Bytes pixels = pictures(2, 40, 56);
  Session alone(engine, {.threads = 1});
  const auto expected = run<std::uint8_t>(alone, pixels, 2, 40, 56);
  std::atomic<int> different = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      Session session(engine, {.threads = 1 + i % 3});
      for (int round = 0; round < 25; ++round) {
        different += run<std::uint8_t>(session, pixels, 2, 40, 56) == expected ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(different, 0);
}

}  // namespace
}  // namespace segmenter_trt
