#include "axis.h"

#include <algorithm>
#include <cmath>

namespace segmenter_trt {

Axis make_axis(std::int64_t grid, std::int64_t full, std::int64_t kept) {
  Axis axis;
  axis.fraction.assign(static_cast<std::size_t>(kept + kAxisPadding), 0.0f);
  const float scale = static_cast<float>(grid) / static_cast<float>(full);
  const auto last = static_cast<std::int32_t>(grid - 1);
  for (std::int32_t pixel = 0; pixel < kept; ++pixel) {
    // rounded once, as PyTorch's CPU builds compute it; below the first centre the grid is continued flat
    const float source = std::max(std::fma(scale, static_cast<float>(pixel) + 0.5f, -0.5f), 0.0f);
    const std::int32_t low = std::min(static_cast<std::int32_t>(source), last);
    axis.fraction[static_cast<std::size_t>(pixel)] = std::min(source - static_cast<float>(low), 1.0f);
    if (axis.cells.empty() || axis.cells.back().low != low) {
      axis.cells.push_back({pixel, pixel, low, std::min(low + 1, last)});
    }
    axis.cells.back().end = pixel + 1;
  }
  return axis;
}

void Axis::spread(const float* line, std::int64_t begin, std::int64_t end, float* out) const {
  for (const Cell& cell : cells) {
    const float from = line[cell.low];
    const float rise = line[cell.high] - from;
    const std::int64_t last = std::min<std::int64_t>(cell.end, end);
    for (std::int64_t pixel = std::max<std::int64_t>(cell.begin, begin); pixel < last; ++pixel) {
      out[pixel - begin] = from + rise * fraction[static_cast<std::size_t>(pixel)];
    }
  }
}

}  // namespace segmenter_trt
