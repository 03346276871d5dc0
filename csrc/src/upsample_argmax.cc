#include "segmenter_trt/upsample_argmax.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "axis.h"
#include "dispatch.h"
#include "parallel.h"

namespace segmenter_trt {
namespace {

constexpr std::int64_t kPixelsPerThread = 1 << 16;

// Differences of two scores must not overflow, and kPaddingScore must lie below every score.
constexpr float kLargestScore = 8e37f;

// Bounds, in units of the largest score, how far rounding can move the difference of two classes at a corner and at a
// pixel: at most 80 roundings of 2^-24 by a worst-case count of the formula's operations.
constexpr float kMargin = 0x1p-17f;

// float32 holds pixel + 0.5 exactly up to here.
constexpr std::int64_t kLargestSide = 1 << 23;

std::string shape(std::int64_t height, std::int64_t width) {
  return std::to_string(height) + "x" + std::to_string(width);
}

[[noreturn]] void refuse_score(const MasksView& masks) {
  const float* score = masks.data;
  while (std::abs(*score) <= kLargestScore) ++score;
  const std::int64_t index = score - masks.data;
  const std::int64_t grid = masks.h * masks.w;
  throw std::invalid_argument("masks[" + std::to_string(index / grid / masks.K) + ", " +
                              std::to_string(index / grid % masks.K) + ", " + std::to_string(index % grid / masks.w) +
                              ", " + std::to_string(index % masks.w) + "] is " + std::to_string(*score) +
                              ": wanted finite scores of magnitude at most 8e37; the network overflowed, run it in a "
                              "wider precision");
}

// The two grid rows a thread works between, with classes innermost; the lower one serves again as the next upper one.
class GridRows {
 public:
  explicit GridRows(const MasksView& masks, std::int64_t padded) : masks_(masks), padded_(padded) {
    for (Row& row : rows_) row.scores.assign(static_cast<std::size_t>(masks.w * padded), kPaddingScore);
  }

  struct Pair {
    const float* top;
    const float* bottom;
    float largest;  // magnitude of a score; NaN or infinite if one is
  };

  Pair read(std::int64_t b, std::int64_t low, std::int64_t high) {
    if (rows_[1].number == b * masks_.h + low) std::swap(rows_[0], rows_[1]);
    fill(rows_[0], b, low);
    if (high == low) return {rows_[0].scores.data(), rows_[0].scores.data(), rows_[0].largest()};
    fill(rows_[1], b, high);
    // as magnitudes, bit patterns order as the numbers do, with infinity and NaN on top
    const Row& larger = rows_[rows_[0].magnitude < rows_[1].magnitude];
    return {rows_[0].scores.data(), rows_[1].scores.data(), larger.largest()};
  }

 private:
  struct Row {
    std::vector<float> scores;   // [w, padded]
    std::int64_t number = -1;    // image and grid row held
    std::int32_t magnitude = 0;  // bit pattern of the largest score's
    float largest() const { return std::bit_cast<float>(magnitude); }
  };

  void fill(Row& row, std::int64_t b, std::int64_t y) {
    const std::int64_t number = b * masks_.h + y;
    if (row.number == number) return;
    row.number = number;
    row.magnitude = 0;
    // squares of the transposition small enough that both sides stay in the nearest cache
    constexpr std::int64_t side = 8;
    for (std::int64_t k0 = 0; k0 < masks_.K; k0 += side) {
      const std::int64_t k1 = std::min(k0 + side, masks_.K);
      const float* const plane = masks_.data + (b * masks_.K * masks_.h + y) * masks_.w;
      for (std::int64_t k = k0; k < k1; ++k) {
        const float* const from = plane + k * masks_.h * masks_.w;
        std::int32_t largest = row.magnitude;
        for (std::int64_t x = 0; x < masks_.w; ++x) {
          largest = std::max(largest, std::bit_cast<std::int32_t>(from[x]) & 0x7fffffff);
        }
        row.magnitude = largest;
      }
      for (std::int64_t x = 0; x < masks_.w; ++x) {
        float* const to = row.scores.data() + x * padded_;
        for (std::int64_t k = k0; k < k1; ++k) to[k] = plane[k * masks_.h * masks_.w + x];
      }
    }
  }

  const MasksView& masks_;
  const std::int64_t padded_;
  Row rows_[2];
};

}  // namespace

void check_sizes(const MasksView& masks, Size size, Size kept) {
  if (masks.B < 0 || masks.K < 1 || masks.h < 1 || masks.w < 1 || masks.h > kLargestSide || masks.w > kLargestSide) {
    throw std::invalid_argument("masks [" + std::to_string(masks.B) + ", " + std::to_string(masks.K) + ", " +
                                std::to_string(masks.h) + ", " + std::to_string(masks.w) +
                                "]: wanted [B, K, h, w] with K, h and w at least 1");
  }
  if (size.height < 1 || size.width < 1 || size.height > kLargestSide || size.width > kLargestSide) {
    throw std::invalid_argument("size " + shape(size.height, size.width) + ": wanted sides from 1 to " +
                                std::to_string(kLargestSide) + " pixels");
  }
  if (kept.height < 1 || kept.width < 1 || kept.height > size.height || kept.width > size.width) {
    throw std::invalid_argument("crop " + shape(kept.height, kept.width) + ": wanted a part of the " +
                                shape(size.height, size.width) + " pixels upsampled to");
  }
}

template <class Label>
void upsample_argmax(const MasksView& masks, Size size, const LabelsView<Label>& labels, int threads, Simd simd) {
  check_sizes(masks, size, labels.size);
  constexpr std::int64_t most_classes = std::int64_t{std::numeric_limits<Label>::max()} + 1;
  if (masks.K > most_classes) {
    throw std::invalid_argument(std::to_string(masks.K) + " classes: these labels hold at most " +
                                std::to_string(most_classes));
  }
  const Kernels& chosen = kernels(simd);
  const Axis rows = make_axis(masks.h, size.height, labels.size.height);
  const Axis columns = make_axis(masks.w, size.width, labels.size.width);
  const std::int64_t padded = (masks.K + kClassPadding - 1) / kClassPadding * kClassPadding;
  std::vector<std::int32_t> classes(static_cast<std::size_t>(padded));
  std::iota(classes.begin(), classes.end(), 0);

  const auto cell_rows = static_cast<std::int64_t>(rows.cells.size());
  const std::int64_t tasks = masks.B * cell_rows;
  const std::int64_t pixels = labels.size.height * labels.size.width;
  threads = choose_threads(threads, tasks, masks.B * pixels, kPixelsPerThread);
  std::atomic<std::int64_t> next = 0;
  std::atomic<bool> refused = false;
  run_on_threads(threads, [&] {
    GridRows grid(masks, padded);
    std::vector<float> scores(static_cast<std::size_t>(Scratch::score_count(padded)));
    std::vector<std::int32_t> survivors(static_cast<std::size_t>(Scratch::class_count(padded)));
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const std::int64_t b = task / cell_rows;
      const Cell& cell = rows.cells[static_cast<std::size_t>(task % cell_rows)];
      const GridRows::Pair pair = grid.read(b, cell.low, cell.high);
      if (!(pair.largest <= kLargestScore)) {
        refused = true;
        return;
      }
      const CellRow<Label> row = {
          .top = pair.top,
          .bottom = pair.bottom,
          .classes = classes.data(),
          .K = static_cast<std::int32_t>(masks.K),
          .padded = static_cast<std::int32_t>(padded),
          .margin = pair.largest * kMargin,
          .cells = columns.cells.data(),
          .cell_count = static_cast<std::int32_t>(columns.cells.size()),
          .fx = columns.fraction.data(),
          .fy = rows.fraction.data(),
          .y_begin = cell.begin,
          .y_end = cell.end,
          .width = static_cast<std::int32_t>(labels.size.width),
          .labels = labels.data + b * pixels,
          .scratch = {scores.data(), survivors.data()},
      };
      if constexpr (std::is_same_v<Label, std::uint8_t>) {
        chosen.label_cells_8(row);
      } else {
        chosen.label_cells_16(row);
      }
    }
  });
  if (refused) refuse_score(masks);
}

template void upsample_argmax<std::uint8_t>(const MasksView&, Size, const LabelsView<std::uint8_t>&, int, Simd);
template void upsample_argmax<std::int16_t>(const MasksView&, Size, const LabelsView<std::int16_t>&, int, Simd);

}  // namespace segmenter_trt
