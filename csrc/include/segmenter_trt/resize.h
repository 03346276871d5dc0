// uint8 RGB images to another size.
#pragma once

#include <cstdint>

#include "segmenter_trt/normalize.h"

namespace segmenter_trt {

// [B, H, W, 3] colours to write, contiguous; the batch is the images'.
struct PixelsView {
  std::uint8_t* data;
  std::int64_t H, W;
};

// Bilinear, with the filter widened to the scale when a side shrinks; bit for bit what Pillow's
// Image.resize(..., BILINEAR) gives, and with it segmenter.datasets.fitted.fit: rows first, then columns, in fixed-point
// coefficients of 22 bits, each pass rounded to 8 bits.
//
// threads: 0 chooses by size and machine. Throws std::invalid_argument when there is no pixel, or a side beyond 2^24.
void resize(const ImagesView& images, const PixelsView& resized, int threads = 0);

}  // namespace segmenter_trt
