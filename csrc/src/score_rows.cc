#include "score_rows.h"

#include <algorithm>
#include <bit>

#include "segmenter_trt/errors.h"

namespace segmenter_trt {

ScoreRows::ScoreRows(std::int64_t h, std::int64_t w, Size size, Size kept)
    : h_(h), w_(w), rows_(make_axis(h, size.height, kept.height)), columns_(make_axis(w, size.width, kept.width)) {
  cell_.reserve(static_cast<std::size_t>(kept.height));
  for (std::size_t i = 0; i < rows_.cells.size(); ++i) {
    cell_.resize(static_cast<std::size_t>(rows_.cells[i].end), static_cast<std::int32_t>(i));
  }
}

void ScoreRows::read(const float* grid, std::int64_t K, std::int64_t y, std::int64_t begin, std::int64_t end,
                     float* out, std::int64_t stride, float* line) const {
  const auto row = static_cast<std::size_t>(y);
  const Cell& cell = rows_.cells[static_cast<std::size_t>(cell_[row])];
  const float fy = rows_.fraction[row];
  for (std::int64_t k = 0; k < K; ++k) {
    const float* const top = grid + (k * h_ + cell.low) * w_;
    const float* const bottom = grid + (k * h_ + cell.high) * w_;
    for (std::int64_t x = 0; x < w_; ++x) line[x] = top[x] + (bottom[x] - top[x]) * fy;
    columns_.spread(line, begin, end, out + k * stride);
  }
}

void require_numbers(const MasksView& masks, const std::string& name) {
  const std::int64_t count = masks.B * masks.K * masks.h * masks.w;
  std::int32_t largest = 0;
  // as magnitudes, bit patterns order as the numbers do, with infinity and NaN on top
  for (std::int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<std::int32_t>(masks.data[i]) & 0x7fffffff);
  }
  if (largest >= 0x7f800000) {
    throw RunError(name +
                   ": scores that are no numbers; fp16 ends at 65504, so try bf16 or fp32, and where fp32 does it too "
                   "the weights are broken");
  }
}

}  // namespace segmenter_trt
