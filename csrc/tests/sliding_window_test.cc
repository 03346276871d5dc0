// Windows against the plain way: every window's logits in full, summed, divided.
#include "segmenter_trt/sliding_window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "fake_engine.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt {
namespace {

using Bytes = std::vector<std::uint8_t>;
using Starts = std::vector<std::int64_t>;

Bytes picture(std::int64_t H, std::int64_t W) {
  Bytes pixels(static_cast<std::size_t>(H * W * 3));
  for (std::size_t i = 0; i < pixels.size(); ++i) {
    pixels[i] = static_cast<std::uint8_t>((i * 7919 >> 4) % 60);
  }
  return pixels;
}

// Labels by logits of whole windows; a different way to the same bits.
Bytes plainly(Session& session, const Bytes& pixels, std::int64_t H, std::int64_t W, std::int64_t window,
              std::int64_t stride) {
  const std::int64_t K = session.engine().manifest().K();
  std::vector<float> total(static_cast<std::size_t>(K * H * W));
  std::vector<float> count(static_cast<std::size_t>(H * W));
  std::vector<float> logits(static_cast<std::size_t>(K * window * window));
  Bytes crop(static_cast<std::size_t>(window * window * 3));
  for (const std::int64_t top : anchors(H, window, stride)) {
    for (const std::int64_t left : anchors(W, window, stride)) {
      for (std::int64_t y = 0; y < window; ++y) {
        std::copy_n(pixels.data() + ((top + y) * W + left) * 3, window * 3, crop.data() + y * window * 3);
      }
      session.logits({crop.data(), 1, window, window}, logits.data());
      for (std::int64_t y = 0; y < window; ++y) {
        for (std::int64_t x = 0; x < window; ++x) {
          const std::int64_t place = (top + y) * W + left + x;
          count[static_cast<std::size_t>(place)] += 1;
          for (std::int64_t k = 0; k < K; ++k) {
            total[static_cast<std::size_t>(k * H * W + place)] +=
                logits[static_cast<std::size_t>((k * window + y) * window + x)];
          }
        }
      }
    }
  }
  Bytes labels;
  for (std::size_t place = 0; place < count.size(); ++place) {
    std::int64_t best = 0;
    const auto mean = [&](std::int64_t k) { return total[static_cast<std::size_t>(k * H * W) + place] / count[place]; };
    for (std::int64_t k = 1; k < K; ++k) best = mean(k) > mean(best) ? k : best;
    labels.push_back(static_cast<std::uint8_t>(best));
  }
  return labels;
}

class SlidingWindowTest : public EngineTest {};

TEST_F(SlidingWindowTest, StartsAsPythonDoes) {
  EXPECT_EQ(anchors(512, 512, 512), Starts({0}));
  EXPECT_EQ(anchors(1024, 512, 512), Starts({0, 512}));
  EXPECT_EQ(anchors(1025, 512, 512), Starts({0, 512, 513}));
  EXPECT_EQ(anchors(1000, 512, 300), Starts({0, 300, 488}));
  EXPECT_THROW(anchors(511, 512, 512), InputError);
  EXPECT_THROW(anchors(512, 512, 0), InputError);
}

TEST_F(SlidingWindowTest, IsTheMeanOfTheWindows) {
  for (const int threads : {1, 3}) {
    Session session(open({}, {.threads = threads}));
    struct Case {
      std::int64_t H, W, window, stride, batch;
    };
    for (const auto& [H, W, window, stride, batch] :
         {Case{24, 24, 24, 24, 1}, Case{48, 72, 24, 24, 2}, Case{24, 60, 24, 24, 4}, Case{53, 61, 24, 17, 3},
          Case{53, 61, 23, 23, 1}, Case{60, 25, 20, 5, 4}, Case{40, 40, 30, 1, 4}}) {
      const Bytes pixels = picture(H, W);
      Bytes labels(static_cast<std::size_t>(H * W), 99);
      run_sliding_window(session, {pixels.data(), 1, H, W}, LabelsView<std::uint8_t>{labels.data(), {H, W}},
                         {window, stride, batch});
      EXPECT_EQ(labels, plainly(session, pixels, H, W, window, stride)) << H << "x" << W << " by " << window;
    }
  }
}

TEST_F(SlidingWindowTest, FillsUpABatchTheEngineCannotSplit) {
  Session one(open({}));
  Session four(open({.batch = "[4, 4, 4]"}));
  const Bytes pixels = picture(40, 50);
  Bytes expected(2000), labels(2000);
  run_sliding_window(one, {pixels.data(), 1, 40, 50}, LabelsView<std::uint8_t>{expected.data(), {40, 50}}, {24, 20, 1});
  run_sliding_window(four, {pixels.data(), 1, 40, 50}, LabelsView<std::uint8_t>{labels.data(), {40, 50}}, {24, 20, 4});
  EXPECT_EQ(labels, expected);
}

TEST_F(SlidingWindowTest, EnlargesWhatIsSmallerThanAWindow) {
  // the fake reads means of patches, which enlarging leaves: classes still lie where their colours lie
  for (const char* input : {"normalized", "pixels"}) {
    Session session(open({.input = input}));
    Bytes pixels(10 * 40 * 3);
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = i / 3 % 40 < 20 ? 0 : 40;
    Bytes labels(400, 99);
    run_sliding_window(session, {pixels.data(), 1, 10, 40}, LabelsView<std::uint8_t>{labels.data(), {10, 40}}, {32});
    for (const std::size_t row : {0, 9}) {
      EXPECT_EQ(labels[row * 40 + 3], 0);
      EXPECT_EQ(labels[row * 40 + 36], 4);
    }
  }
}

TEST_F(SlidingWindowTest, RefusesWhatWouldBecomeGigabytes) {
  Session session(open({}));
  Bytes line(std::size_t{1'000'000} * 3), labels(1'000'000);
  for (const Size size : {Size{1, 1'000'000}, Size{1'000'000, 1}}) {
    const ImagesView images = {line.data(), 1, size.height, size.width};
    const std::string message = told<InputError>([&] {
      run_sliding_window(session, images, LabelsView<std::uint8_t>{labels.data(), size}, {32});
    });
    EXPECT_NE(message.find("makes it larger than 89478485 pixels; take a smaller window"), std::string::npos)
        << message;
  }
  require_enlargeable(1, 87'381, 32);  // the last that fits
  EXPECT_THROW(require_enlargeable(1, 87'382, 32), InputError);
  require_enlargeable(32, 100'000'000, 32);  // nothing is enlarged
}

TEST_F(SlidingWindowTest, RefusesWindowsThatLeaveGaps) {
  Session session(open({}));
  const Bytes pixels = picture(40, 50);
  Bytes labels(2000);
  const auto refused = [&](ImagesView images, const WindowOptions& options) {
    const Size size = {images.H, images.W};
    return told<InputError>([&] {
      run_sliding_window(session, images, LabelsView<std::uint8_t>{labels.data(), size}, options);
    });
  };
  EXPECT_EQ(refused({pixels.data(), 1, 40, 50}, {24, 25, 1}),
            "stride 25 with window 24: wanted 1 to 24, or pixels are left out");
  EXPECT_EQ(refused({pixels.data(), 1, 40, 50}, {24, 24, 0}), "window batch 0: wanted 1 or more");
  // nobody has memory for these
  for (const std::int64_t window : {std::int64_t{1} << 30, std::int64_t{1} << 62}) {
    EXPECT_NE(refused({pixels.data(), 1, 40, 50}, {window}).find("this engine takes"), std::string::npos);
  }
  EXPECT_NE(refused({pixels.data(), 1, 40, 50}, {24, 24, std::int64_t{1} << 62}).find("this engine takes at most"),
            std::string::npos);
  EXPECT_NE(refused({pixels.data(), 2, 20, 50}, {24}).find("wanted one image"), std::string::npos);
  EXPECT_NE(refused({pixels.data(), 1, 0, 50}, {24}).find("wanted one image"), std::string::npos);
  EXPECT_THROW(
      run_sliding_window(session, {pixels.data(), 1, 40, 50}, LabelsView<std::int16_t>{nullptr, {40, 50}}, {24}),
      InputError);
}

TEST_F(SlidingWindowTest, SaysWhenScoresAreNoNumbers) {
  Session session(open({.model = "broken"}));
  const Bytes pixels = picture(40, 50);
  Bytes labels(2000);
  for (const std::int64_t window : {20, 45}) {
    EXPECT_THROW(run_sliding_window(session, {pixels.data(), 1, 40, 50},
                                    LabelsView<std::uint8_t>{labels.data(), {40, 50}}, {window}),
                 RunError);
  }
}

}  // namespace
}  // namespace segmenter_trt
