// uint8 RGB images to another size.
#pragma once

#include <cstdint>

#include "segmenter_trt/normalize.h"
#include "segmenter_trt/upsample_argmax.h"

namespace segmenter_trt {

// [B, H, W, 3] colours to write, contiguous; the batch is the images'.
struct PixelsView {
  std::uint8_t* data;
  std::int64_t H, W;
};

// Throws std::invalid_argument when there is no pixel, or a side is beyond 2^24: for callers who want to know before
// they allocate the pixels.
void check_sizes(const ImagesView& images, Size size);

// Bilinear, with the filter widened to the scale when a side shrinks; bit for bit what Pillow 13's
// Image.resize(..., BILINEAR) gives, and with it segmenter.datasets.fitted.fit: in fixed-point weights of 22 bits, each
// pass rounded to 8 bits, along rows first unless the height shrinks by more than twice what the width does. (Before
// release 13 Pillow went along rows first always, and then differs by a rounding there.)
//
// threads: 0 chooses by size and machine. Throws std::invalid_argument as check_sizes does.
void resize(const ImagesView& images, const PixelsView& resized, int threads = 0);

}  // namespace segmenter_trt
