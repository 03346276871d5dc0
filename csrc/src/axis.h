// Where output pixels read the grid along one axis.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace segmenter_trt {

struct Axis {
  std::vector<Cell> cells;      // in order, covering every kept pixel once
  std::vector<float> fraction;  // of the way from low to high, one a pixel, then kAxisPadding zeros

  // Values of pixels [begin, end) between those of the grid points of `line`; `out` is where `begin`'s goes.
  void spread(const float* line, std::int64_t begin, std::int64_t end, float* out) const;
};

// `grid` points stretched over `full` pixels of which the first `kept` are wanted; all positive.
Axis make_axis(std::int64_t grid, std::int64_t full, std::int64_t kept);

}  // namespace segmenter_trt
