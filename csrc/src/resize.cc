#include "segmenter_trt/resize.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "resize_filter.h"
#include "sides.h"
#include "workers.h"

namespace segmenter_trt {
namespace {

constexpr std::int32_t kHalf = 1 << (kResizePrecision - 1);
constexpr std::int64_t kLargestResizedSide = 1 << 24;
constexpr std::int64_t kResizedPixelsPerThread = 1 << 17;

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kResizePrecision, 0, 255));
}

// [from, 3] -> [to, 3]
void resize_row(const std::uint8_t* from, const ResizeFilter& filter, std::int64_t to, std::uint8_t* out) {
  for (std::int64_t x = 0; x < to; ++x) {
    const Tap tap = filter[x];
    const std::uint8_t* pixel = from + tap.first * 3;
    std::int32_t r = kHalf, g = kHalf, b = kHalf;
    for (std::int32_t i = 0; i < tap.count; ++i, pixel += 3) {
      r += pixel[0] * tap.weights[i];
      g += pixel[1] * tap.weights[i];
      b += pixel[2] * tap.weights[i];
    }
    out[3 * x] = rounded(r);
    out[3 * x + 1] = rounded(g);
    out[3 * x + 2] = rounded(b);
  }
}

// The rows of one tap -> a row of `width` bytes, by way of `sums`.
void blend_rows(const std::uint8_t* rows, const Tap& tap, std::int64_t width, std::int32_t* sums, std::uint8_t* out) {
  std::fill(sums, sums + width, kHalf);
  for (std::int32_t i = 0; i < tap.count; ++i) {
    const std::uint8_t* const row = rows + (tap.first + i) * width;
    const std::int32_t weight = tap.weights[i];
    for (std::int64_t x = 0; x < width; ++x) sums[x] += row[x] * weight;
  }
  for (std::int64_t x = 0; x < width; ++x) out[x] = rounded(sums[x]);
}

void check_side(std::int64_t H, std::int64_t W) {
  if (H < 1 || W < 1 || H > kLargestResizedSide || W > kLargestResizedSide) {
    throw std::invalid_argument("size " + sides(H, W) + ": images can be resized from and to sides of 1 to " +
                                std::to_string(kLargestResizedSide) + " pixels");
  }
}

}  // namespace

void check_sizes(const ImagesView& images, Size size) {
  if (images.B < 0) throw std::invalid_argument("batch of " + std::to_string(images.B) + ": wanted 0 or more");
  check_side(images.H, images.W);
  check_side(size.height, size.width);
  // of the sides checked, no product overflows: 2^24 * 2^24 * 3
  const std::int64_t bytes = std::max(images.H, size.height) * std::max(images.W, size.width) * 3;
  if (images.B > std::numeric_limits<std::int64_t>::max() / bytes) {
    throw std::invalid_argument("batch of " + std::to_string(images.B) + ": more bytes than there are addresses");
  }
}

void resize(const ImagesView& images, const PixelsView& resized, int threads) {
  check_sizes(images, {resized.H, resized.W});
  const std::int64_t most_rows = images.B * std::max(images.H, resized.H);
  threads = choose_threads(threads, most_rows, most_rows * std::max(images.W, resized.W), kResizedPixelsPerThread);
  Workers workers;
  // calls work(row, index) for rows [0, count), whichever thread comes first
  const auto share = [&](std::int64_t count, const auto& work) {
    std::atomic<std::int64_t> next = 0;
    workers.run(threads, [&](int index) {
      for (std::int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(row, index);
    });
  };
  // [B * rows, images.W, 3] -> [B * rows, resized.W, 3]
  const auto along_rows = [&](const std::uint8_t* from, std::int64_t rows, std::uint8_t* out) {
    const ResizeFilter filter(images.W, resized.W);
    share(images.B * rows, [&](std::int64_t row, int) {
      resize_row(from + row * images.W * 3, filter, resized.W, out + row * resized.W * 3);
    });
  };
  // [B, images.H, width, 3] -> [B, resized.H, width, 3]
  const auto along_columns = [&](const std::uint8_t* from, std::int64_t width, std::uint8_t* out) {
    const ResizeFilter filter(images.H, resized.H);
    const std::int64_t bytes = width * 3;
    std::vector<std::int32_t> sums(static_cast<std::size_t>(threads * bytes));
    share(images.B * resized.H, [&](std::int64_t row, int index) {
      const std::uint8_t* const image = from + row / resized.H * images.H * bytes;
      blend_rows(image, filter[row % resized.H], bytes, sums.data() + index * bytes, out + row * bytes);
    });
  };

  // a side that stays is not touched: no rounding then
  const bool width_changes = images.W != resized.W;
  const bool height_changes = images.H != resized.H;
  if (width_changes && height_changes) {
    std::vector<std::uint8_t> between;
    if (columns_first(images, {resized.H, resized.W})) {
      between.resize(static_cast<std::size_t>(images.B * resized.H * images.W * 3));
      along_columns(images.data, images.W, between.data());
      along_rows(between.data(), resized.H, resized.data);
    } else {
      between.resize(static_cast<std::size_t>(images.B * images.H * resized.W * 3));
      along_rows(images.data, images.H, between.data());
      along_columns(between.data(), resized.W, resized.data);
    }
  } else if (width_changes) {
    along_rows(images.data, images.H, resized.data);
  } else if (height_changes) {
    along_columns(images.data, images.W, resized.data);
  } else {
    std::copy_n(images.data, images.B * images.H * images.W * 3, resized.data);
  }
}

}  // namespace segmenter_trt
