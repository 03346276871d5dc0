// Upsampled scores, a row of pixels at a time: for when labels are not enough.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "axis.h"
#include "segmenter_trt/upsample_argmax.h"

namespace segmenter_trt {

// Grids of one shape stretched over `size`, of which the top-left `kept` is wanted. Values are those upsample_argmax
// compares, bit for bit.
class ScoreRows {
 public:
  ScoreRows(std::int64_t h, std::int64_t w, Size size, Size kept);

  // Pixels [begin, end) of row y of K classes: grid [K, h, w] -> out, `stride` floats from one class to the next, with
  // pixel `begin` first. `line` holds w floats to work in.
  void read(const float* grid, std::int64_t K, std::int64_t y, std::int64_t begin, std::int64_t end, float* out,
            std::int64_t stride, float* line) const;

 private:
  const std::int64_t h_, w_;
  const Axis rows_, columns_;
  std::vector<std::int32_t> cell_;  // of each row
};

// Throws RunError, beginning with `name`, when a score is NaN or infinite.
void require_numbers(const MasksView& masks, const std::string& name);

}  // namespace segmenter_trt
