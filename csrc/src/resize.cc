#include "segmenter_trt/resize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "workers.h"

namespace segmenter_trt {
namespace {

constexpr int kPrecision = 22;  // bits after the point: 8 for the colour and 2 spare ones fill an int32
constexpr std::int32_t kHalf = 1 << (kPrecision - 1);
constexpr std::int64_t kLargestSide = 1 << 24;
constexpr std::int64_t kPixelsPerThread = 1 << 17;

// The pixels of the old side that make one of the new, and how much of each.
struct Tap {
  std::int64_t first;
  std::int32_t count;
  const std::int32_t* weights;
};

// One side of the image, from its old length to its new one.
class Filter {
 public:
  Filter(std::int64_t from, std::int64_t to) {
    const double scale = static_cast<double>(from) / static_cast<double>(to);
    // a triangle of one pixel to each side; wider where pixels vanish, so that each counts
    const double support = std::max(scale, 1.0);
    const auto most = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
    weights_.resize(static_cast<std::size_t>(to) * most);
    std::vector<double> exact(most);
    for (std::int64_t pixel = 0; pixel < to; ++pixel) {
      const double center = (static_cast<double>(pixel) + 0.5) * scale;
      const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5), 0);
      const auto end = std::min<std::int64_t>(static_cast<std::int64_t>(center + support + 0.5), from);
      const auto count = static_cast<std::int32_t>(end - first);
      double sum = 0;
      for (std::int32_t i = 0; i < count; ++i) {
        const double distance = std::abs((static_cast<double>(i + first) - center + 0.5) * (1.0 / support));
        exact[static_cast<std::size_t>(i)] = distance < 1.0 ? 1.0 - distance : 0.0;
        sum += exact[static_cast<std::size_t>(i)];
      }
      std::int32_t* const weights = weights_.data() + static_cast<std::size_t>(pixel) * most;
      for (std::int32_t i = 0; i < count; ++i) {
        const double share = sum == 0.0 ? exact[static_cast<std::size_t>(i)] : exact[static_cast<std::size_t>(i)] / sum;
        weights[i] = static_cast<std::int32_t>(0.5 + share * (1 << kPrecision));
      }
      taps_.push_back({first, count, weights});
    }
  }

  const Tap& operator[](std::int64_t pixel) const { return taps_[static_cast<std::size_t>(pixel)]; }

 private:
  std::vector<std::int32_t> weights_;
  std::vector<Tap> taps_;
};

std::uint8_t rounded(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kPrecision, 0, 255)); }

// [from, 3] -> [to, 3]
void resize_row(const std::uint8_t* from, const Filter& filter, std::int64_t to, std::uint8_t* out) {
  for (std::int64_t x = 0; x < to; ++x) {
    const Tap& tap = filter[x];
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
  if (H < 1 || W < 1 || H > kLargestSide || W > kLargestSide) {
    throw std::invalid_argument("size " + std::to_string(H) + "x" + std::to_string(W) +
                                ": images can be resized from and to sides of 1 to " + std::to_string(kLargestSide) +
                                " pixels");
  }
}

}  // namespace

void check_sizes(const ImagesView& images, Size size) {
  if (images.B < 0) throw std::invalid_argument("batch of " + std::to_string(images.B) + ": wanted 0 or more");
  check_side(images.H, images.W);
  check_side(size.height, size.width);
}

void resize(const ImagesView& images, const PixelsView& resized, int threads) {
  check_sizes(images, {resized.H, resized.W});
  const std::int64_t old_rows = images.B * images.H;
  const std::int64_t new_rows = images.B * resized.H;
  threads =
      choose_threads(threads, std::max(old_rows, new_rows), std::max(old_rows, new_rows) * resized.W, kPixelsPerThread);
  Workers workers;
  // calls work(row, index) for rows [0, count), whichever thread comes first
  const auto share = [&](std::int64_t count, const auto& work) {
    std::atomic<std::int64_t> next = 0;
    workers.run(threads, [&](int index) {
      for (std::int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(row, index);
    });
  };
  const std::int64_t width = resized.W * 3;
  const bool narrower = images.W != resized.W;
  const bool lower = images.H != resized.H;

  // a side that stays is not touched, as no rounding may
  const std::uint8_t* rows = images.data;
  std::vector<std::uint8_t> between;
  if (narrower) {
    const Filter filter(images.W, resized.W);
    std::uint8_t* out = resized.data;
    if (lower) {
      between.resize(static_cast<std::size_t>(old_rows * width));
      out = between.data();
    }
    share(old_rows, [&](std::int64_t row, int) {
      resize_row(images.data + row * images.W * 3, filter, resized.W, out + row * width);
    });
    rows = out;
  }
  if (lower) {
    const Filter filter(images.H, resized.H);
    std::vector<std::int32_t> sums(static_cast<std::size_t>(threads * width));
    share(new_rows, [&](std::int64_t row, int index) {
      const std::uint8_t* const image = rows + row / resized.H * images.H * width;
      blend_rows(image, filter[row % resized.H], width, sums.data() + index * width, resized.data + row * width);
    });
  }
  if (!narrower && !lower) std::copy_n(images.data, old_rows * width, resized.data);
}

}  // namespace segmenter_trt
