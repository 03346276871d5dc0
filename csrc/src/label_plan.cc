#include "label_plan.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "dispatch.h"

namespace segmenter_trt {
namespace {

constexpr std::int64_t kLabelledPixelsPerThread = 1 << 16;

// Differences of two scores must not overflow, and kPaddingScore must lie below every score.
constexpr float kLargestScore = 8e37f;

// Bounds, in units of the largest score, how far rounding can move the difference of two classes at a corner and at a
// pixel: at most 80 roundings of 2^-24 by a worst-case count of the formula's operations.
constexpr float kMargin = 0x1p-17f;

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

}  // namespace

GridRows::GridRows(std::int64_t w, std::int64_t padded) : padded_(padded) {
  for (Row& row : rows_) row.scores.assign(static_cast<std::size_t>(w * padded), kPaddingScore);
}

float GridRows::Row::largest() const { return std::bit_cast<float>(magnitude); }

void GridRows::forget() {
  for (Row& row : rows_) row.number = -1;
}

GridRows::Pair GridRows::read(const MasksView& masks, std::int64_t b, std::int64_t low, std::int64_t high) {
  if (rows_[1].number == b * masks.h + low) std::swap(rows_[0], rows_[1]);
  fill(masks, rows_[0], b, low);
  if (high == low) return {rows_[0].scores.data(), rows_[0].scores.data(), rows_[0].largest()};
  fill(masks, rows_[1], b, high);
  // as magnitudes, bit patterns order as the numbers do, with infinity and NaN on top
  const Row& larger = rows_[rows_[0].magnitude < rows_[1].magnitude];
  return {rows_[0].scores.data(), rows_[1].scores.data(), larger.largest()};
}

void GridRows::fill(const MasksView& masks, Row& row, std::int64_t b, std::int64_t y) {
  const std::int64_t number = b * masks.h + y;
  if (row.number == number) return;
  row.number = number;
  row.magnitude = 0;
  // squares of the transposition small enough that both sides stay in the nearest cache
  constexpr std::int64_t side = 8;
  for (std::int64_t k0 = 0; k0 < masks.K; k0 += side) {
    const std::int64_t k1 = std::min(k0 + side, masks.K);
    const float* const plane = masks.data + (b * masks.K * masks.h + y) * masks.w;
    for (std::int64_t k = k0; k < k1; ++k) {
      const float* const from = plane + k * masks.h * masks.w;
      std::int32_t largest = row.magnitude;
      for (std::int64_t x = 0; x < masks.w; ++x) {
        largest = std::max(largest, std::bit_cast<std::int32_t>(from[x]) & 0x7fffffff);
      }
      row.magnitude = largest;
    }
    for (std::int64_t x = 0; x < masks.w; ++x) {
      float* const to = row.scores.data() + x * padded_;
      for (std::int64_t k = k0; k < k1; ++k) to[k] = plane[k * masks.h * masks.w + x];
    }
  }
}

LabelPlan::Worker::Worker(std::int64_t w, std::int64_t padded)
    : grid(w, padded),
      scores(static_cast<std::size_t>(Scratch::score_count(padded))),
      survivors(static_cast<std::size_t>(Scratch::class_count(padded))) {}

LabelPlan::LabelPlan(const MasksView& masks, Size size, Size kept, int threads, Simd simd)
    : shape_((check_sizes(masks, size, kept), masks)),
      kept_(kept),
      kernels_(kernels(simd)),
      rows_(make_axis(masks.h, size.height, kept.height)),
      columns_(make_axis(masks.w, size.width, kept.width)),
      padded_((masks.K + kClassPadding - 1) / kClassPadding * kClassPadding),
      classes_(static_cast<std::size_t>(padded_)) {
  std::iota(classes_.begin(), classes_.end(), 0);
  const auto tasks = masks.B * static_cast<std::int64_t>(rows_.cells.size());
  threads = choose_threads(threads, tasks, masks.B * kept.height * kept.width, kLabelledPixelsPerThread);
  workers_.reserve(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) workers_.emplace_back(masks.w, padded_);
}

template <class Label>
void LabelPlan::run(const float* data, Label* labels, Workers& workers) {
  MasksView masks = shape_;
  masks.data = data;
  const auto cell_rows = static_cast<std::int64_t>(rows_.cells.size());
  const std::int64_t tasks = masks.B * cell_rows;
  const std::int64_t pixels = kept_.height * kept_.width;
  std::atomic<std::int64_t> next = 0;
  std::atomic<bool> refused = false;
  workers.run(static_cast<int>(workers_.size()), [&](int index) {
    Worker& own = workers_[static_cast<std::size_t>(index)];
    own.grid.forget();
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const std::int64_t b = task / cell_rows;
      const Cell& cell = rows_.cells[static_cast<std::size_t>(task % cell_rows)];
      const GridRows::Pair pair = own.grid.read(masks, b, cell.low, cell.high);
      if (!(pair.largest <= kLargestScore)) {
        refused = true;
        return;
      }
      const CellRow<Label> row = {
          .top = pair.top,
          .bottom = pair.bottom,
          .classes = classes_.data(),
          .K = static_cast<std::int32_t>(masks.K),
          .padded = static_cast<std::int32_t>(padded_),
          .margin = pair.largest * kMargin,
          .cells = columns_.cells.data(),
          .cell_count = static_cast<std::int32_t>(columns_.cells.size()),
          .fx = columns_.fraction.data(),
          .fy = rows_.fraction.data(),
          .y_begin = cell.begin,
          .y_end = cell.end,
          .width = static_cast<std::int32_t>(kept_.width),
          .labels = labels + b * pixels,
          .scratch = {own.scores.data(), own.survivors.data()},
      };
      if constexpr (std::is_same_v<Label, std::uint8_t>) {
        kernels_.label_cells_8(row);
      } else {
        kernels_.label_cells_16(row);
      }
    }
  });
  if (refused) refuse_score(masks);
}

template void LabelPlan::run<std::uint8_t>(const float*, std::uint8_t*, Workers&);
template void LabelPlan::run<std::int16_t>(const float*, std::int16_t*, Workers&);

}  // namespace segmenter_trt
