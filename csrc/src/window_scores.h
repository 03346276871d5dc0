// Mean scores of windows that overlap, kept as masks on the patch grid and made into rows of pixels when asked for.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "score_rows.h"

namespace segmenter_trt {

class WindowScores {
 public:
  // Windows of `window` pixels start at `columns` along an image's width; their masks are [K, h, w], padded to `padded`
  // pixels a side.
  WindowScores(std::vector<std::int64_t> columns, std::int64_t window, std::int64_t K, std::int64_t h, std::int64_t w,
               Size padded);

  // Starts a row of windows at pixel row `y`; they lie below those before.
  void start_row(std::int64_t y);

  // The masks of the row's next window, from the left.
  void add(const float* masks);

  // Forgets the windows that end at or above pixel row `y`.
  void drop_above(std::int64_t y);

  // Whether some pixel of row `y` lies in several windows.
  bool overlaps(std::int64_t y) const;

  // Scores to work in, one a thread.
  struct Scratch {
    std::vector<float> one, line;
    std::vector<std::int32_t> count;
  };
  Scratch scratch() const;

  // Mean scores of row `y`, [K, W]: the sum over the windows in the order they came, over their number. Where only one
  // window lies, nothing is written when `overlapping_only`. Returns how many windows lie on each pixel.
  const std::int32_t* read(std::int64_t y, bool overlapping_only, float* mean, Scratch& scratch) const;

 private:
  struct Row {
    std::int64_t y;
    std::vector<float> masks;  // [columns, K, h, w]
  };

  std::int64_t W() const { return columns_.back() + window_; }

  const std::vector<std::int64_t> columns_;
  const std::int64_t window_, K_, h_, w_;
  const ScoreRows scores_;
  std::vector<std::int32_t> across_;  // windows of one row that lie on each pixel column
  std::deque<Row> rows_;
};

}  // namespace segmenter_trt
