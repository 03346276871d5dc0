// The pruned search against every class at every pixel, under sanitizers. Parity with PyTorch is
// tests/test_segmenter_trt.py's.
#include "segmenter_trt/upsample_argmax.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "score_rows.h"

namespace segmenter_trt {
namespace {

template <class Label>
void agrees(std::int64_t B, std::int64_t K, std::int64_t h, std::int64_t w, Size size, Size kept, int threads) {
  std::mt19937 random(static_cast<unsigned>(K));
  std::normal_distribution<float> normal;
  std::vector<float> masks(static_cast<std::size_t>(B * K * h * w));
  for (float& score : masks) score = normal(random);
  std::vector<Label> labels(static_cast<std::size_t>(B * kept.height * kept.width));
  upsample_argmax<Label>({masks.data(), B, K, h, w}, size, {labels.data(), kept}, threads);

  const ScoreRows rows(h, w, size, kept);
  std::vector<float> scores(static_cast<std::size_t>(K * kept.width));
  std::vector<float> line(static_cast<std::size_t>(w));
  std::size_t pixel = 0;
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t y = 0; y < kept.height; ++y) {
      rows.read(masks.data() + b * K * h * w, K, y, 0, kept.width, scores.data(), kept.width, line.data());
      for (std::int64_t x = 0; x < kept.width; ++x, ++pixel) {
        std::int64_t best = 0;
        const auto score = [&](std::int64_t k) { return scores[static_cast<std::size_t>(k * kept.width + x)]; };
        for (std::int64_t k = 1; k < K; ++k) best = score(k) > score(best) ? k : best;
        ASSERT_EQ(labels[pixel], static_cast<Label>(best)) << b << " " << y << " " << x;
      }
    }
  }
}

TEST(UpsampleArgmax, GivesTheFirstLargestOfEveryClass) {
  agrees<std::uint8_t>(1, 19, 8, 9, {64, 72}, {61, 70}, 1);
  agrees<std::uint8_t>(2, 150, 4, 4, {64, 64}, {64, 64}, 3);
  agrees<std::int16_t>(1, 300, 5, 3, {33, 40}, {33, 39}, 2);
  agrees<std::uint8_t>(3, 2, 16, 16, {5, 7}, {5, 7}, 1);
  agrees<std::uint8_t>(1, 1, 1, 1, {9, 9}, {1, 1}, 4);
}

TEST(UpsampleArgmax, RefusesWhatHasNoOrder) {
  std::vector<float> masks(16, 1.0f);
  masks[9] = std::numeric_limits<float>::infinity();
  std::vector<std::uint8_t> labels(64);
  const auto call = [&] { upsample_argmax<std::uint8_t>({masks.data(), 1, 4, 2, 2}, {8, 8}, {labels.data(), {8, 8}}); };
  EXPECT_THROW(call(), std::invalid_argument);
}

}  // namespace
}  // namespace segmenter_trt
