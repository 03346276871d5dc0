// uint8 RGB images to the network's input.
#pragma once

#include <cstdint>

#include "segmenter_trt/simd.h"

namespace segmenter_trt {

// [B, H, W, 3] colours, contiguous.
struct ImagesView {
  const std::uint8_t* data;
  std::int64_t B, H, W;
};

// [B, 3, H, W] network input to write, contiguous; the batch is the images'.
struct PlanesView {
  float* data;
  std::int64_t H, W;
};

// Throws std::invalid_argument when there is no pixel, or H x W cannot hold the images.
void check_sizes(const ImagesView& images, std::int64_t H, std::int64_t W);

// x * scale[channel] + shift[channel] in float32, product and sum each rounded (bit for bit what
// segmenter.preprocess.normalize gives), with zeros to the right of and below the image.
//
// threads: 0 chooses by size and machine. Throws std::invalid_argument as check_sizes does.
void normalize(const ImagesView& images, const float scale[3], const float shift[3], const PlanesView& planes,
               int threads = 0, Simd simd = Simd::automatic);

}  // namespace segmenter_trt
