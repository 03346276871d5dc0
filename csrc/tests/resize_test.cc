// What needs no Pillow: sides that stay, batches, threads. Parity with Pillow is tests/test_segmenter_trt.py's.
#include "segmenter_trt/resize.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

namespace segmenter_trt {
namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes noise(std::int64_t pixels) {
  Bytes bytes(static_cast<std::size_t>(pixels * 3));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(i * 7919 >> 5);
  return bytes;
}

Bytes resized(const Bytes& from, std::int64_t B, std::int64_t H, std::int64_t W, std::int64_t height,
              std::int64_t width, int threads = 1) {
  Bytes out(static_cast<std::size_t>(B * height * width * 3));
  resize({from.data(), B, H, W}, {out.data(), height, width}, threads);
  return out;
}

TEST(Resize, CopiesWhatFits) {
  const Bytes image = noise(13 * 17);
  EXPECT_EQ(resized(image, 1, 13, 17, 13, 17), image);
}

TEST(Resize, KeepsAFlatColour) {
  const Bytes flat(20 * 30 * 3, 201);
  EXPECT_EQ(resized(flat, 1, 20, 30, 7, 55), Bytes(7 * 55 * 3, 201));
}

TEST(Resize, TreatsABatchAsItsImages) {
  const std::int64_t area = 19 * 23;
  const Bytes both = noise(2 * area);
  for (const auto& [height, width] : {std::pair{40, 11}, std::pair{5, 22}, std::pair{19, 50}, std::pair{7, 23}}) {
    Bytes single = resized(Bytes(both.begin(), both.begin() + area * 3), 1, 19, 23, height, width);
    const Bytes second = resized(Bytes(both.begin() + area * 3, both.end()), 1, 19, 23, height, width);
    single.insert(single.end(), second.begin(), second.end());
    for (const int threads : {0, 1, 3}) EXPECT_EQ(resized(both, 2, 19, 23, height, width, threads), single);
  }
}

TEST(Resize, RefusesSidesThatAreNone) {
  const Bytes image = noise(4);
  EXPECT_THROW(resized(image, 1, 0, 2, 2, 2), std::invalid_argument);
  EXPECT_THROW(resize({image.data(), 1, 2, 2}, {nullptr, 0, 2}), std::invalid_argument);
  EXPECT_THROW(resize({image.data(), 1, 2, 2}, {nullptr, 2, (1 << 24) + 1}), std::invalid_argument);
  EXPECT_THROW(resize({image.data(), -1, 2, 2}, {nullptr, 2, 2}), std::invalid_argument);
  for (const std::int64_t B : {std::int64_t{1} << 62, std::int64_t{1} << 40}) {
    EXPECT_THROW(resize({image.data(), B, 8192, 8192}, {nullptr, 2, 2}), std::invalid_argument);
  }
}

}  // namespace
}  // namespace segmenter_trt
