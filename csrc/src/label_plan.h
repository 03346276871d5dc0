// What upsample_argmax needs for masks of one shape: made once, then used any number of times without allocating.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "axis.h"
#include "kernels.h"
#include "segmenter_trt/upsample_argmax.h"
#include "workers.h"

namespace segmenter_trt {

// The two grid rows a thread works between, with classes innermost; the lower one serves again as the next upper one.
class GridRows {
 public:
  GridRows(std::int64_t w, std::int64_t padded);

  struct Pair {
    const float* top;
    const float* bottom;
    float largest;  // magnitude of a score; NaN or infinite if one is
  };

  // Grid rows `low` and `high` of image `b`. What is held from other masks must have been forgotten.
  Pair read(const MasksView& masks, std::int64_t b, std::int64_t low, std::int64_t high);
  void forget();

 private:
  struct Row {
    std::vector<float> scores;   // [w, padded]
    std::int64_t number = -1;    // image and grid row held
    std::int32_t magnitude = 0;  // bit pattern of the largest score's
    float largest() const;
  };

  void fill(const MasksView& masks, Row& row, std::int64_t b, std::int64_t y);

  const std::int64_t padded_;
  Row rows_[2];
};

class LabelPlan {
 public:
  // masks: of which only the shape counts. Throws std::invalid_argument as check_sizes does.
  LabelPlan(const MasksView& masks, Size size, Size kept, int threads, Simd simd);

  // Labels [B, H', W'] of masks of the plan's shape; see upsample_argmax.
  template <class Label>
  void run(const float* masks, Label* labels, Workers& workers);

 private:
  struct Worker {
    Worker(std::int64_t w, std::int64_t padded);

    GridRows grid;
    std::vector<float> scores;
    std::vector<std::int32_t> survivors;
  };

  const MasksView shape_;
  const Size kept_;
  const Kernels& kernels_;
  const Axis rows_, columns_;
  const std::int64_t padded_;          // classes, up to a multiple of kClassPadding
  std::vector<std::int32_t> classes_;  // 0, 1, 2, ...
  std::vector<Worker> workers_;        // one a thread
};

extern template void LabelPlan::run<std::uint8_t>(const float*, std::uint8_t*, Workers&);
extern template void LabelPlan::run<std::int16_t>(const float*, std::int16_t*, Workers&);

}  // namespace segmenter_trt
