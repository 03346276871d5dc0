// What the routines need of vector code: one table of functions for each instruction set.
//
// The tables are compiled with different compiler options, so neither this header nor kernels_vector.h may use an
// inline function of the standard library: the linker keeps one copy of those, and it could be the one an old CPU
// cannot run.
#pragma once

#include <cstdint>

namespace segmenter_trt {

// Output pixels [begin, end) of an axis that lie between the grid points `low` and `high`.
struct Cell {
  std::int32_t begin, end;
  std::int32_t low, high;
};

// Vector code may read this many fractions past an axis' last.
inline constexpr int kAxisPadding = 8;

// Padding of class vectors, a multiple of every instruction set's lanes.
inline constexpr std::int32_t kClassPadding = 8;

// Score of the lanes that pad a class vector: below every score accepted, and flat, so that no class is lost to it.
inline constexpr float kPaddingScore = -0x1p127f;

// Rectangles of pixels are halved at most this often.
inline constexpr int kMaxDepth = 16;

// Memory `label_cells` works in, for class vectors of `padded` classes.
struct Scratch {
  float* scores;
  std::int32_t* classes;

  static constexpr std::int64_t score_count(std::int64_t padded) {
    return kMaxDepth * 4 * (padded + kClassPadding) + 6 * padded;
  }
  static constexpr std::int64_t class_count(std::int64_t padded) { return kMaxDepth * (padded + kClassPadding); }
};

// The output rows [y_begin, y_end) of one image, which all lie between the same two grid rows.
template <class Label>
struct CellRow {
  const float* top;             // [w, padded]: scores of the upper grid row, classes innermost
  const float* bottom;          // [w, padded]: of the lower
  const std::int32_t* classes;  // [padded]: 0, 1, 2, ...
  std::int32_t K, padded;
  float margin;  // a class this far below another at every corner loses in between too, whatever the rounding
  const Cell* cells;
  std::int32_t cell_count;
  const float* fx;  // [W' + kAxisPadding]
  const float* fy;  // [H']
  std::int32_t y_begin, y_end;
  std::int32_t width;  // W'
  Label* labels;       // [H', W'] of this image
  Scratch scratch;
};

struct Kernels {
  void (*label_cells_8)(const CellRow<std::uint8_t>& row);
  void (*label_cells_16)(const CellRow<std::int16_t>& row);
  // pixels: [W, 3]; out: three rows of W floats, `plane` floats apart
  void (*normalize_row)(const std::uint8_t* pixels, std::int64_t W, const float scale[3], const float shift[3],
                        float* out, std::int64_t plane);
};

extern const Kernels kBaselineKernels;
#if defined(SEGMENTER_TRT_HAVE_AVX2)
extern const Kernels kAvx2Kernels;
#endif

}  // namespace segmenter_trt
