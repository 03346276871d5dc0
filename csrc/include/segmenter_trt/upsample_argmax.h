// Class masks on the patch grid to labels on pixels, without ever storing full-resolution logits.
#pragma once

#include <cstdint>

#include "segmenter_trt/simd.h"

namespace segmenter_trt {

struct Size {
  std::int64_t height;
  std::int64_t width;
};

// [B, K, h, w] scores, contiguous.
struct MasksView {
  const float* data;
  std::int64_t B, K, h, w;
};

// Classes a byte tells apart; labels of more are int16.
inline constexpr std::int64_t kMostByteClasses = 256;

// [B, H', W'] labels to write, contiguous; the batch is the masks'.
template <class Label>
struct LabelsView {
  Label* data;
  Size size;
};

// Throws std::invalid_argument when masks cannot be upsampled to `size`, or `kept` is no part of it: for callers who
// want to know before they allocate the labels.
void check_sizes(const MasksView& masks, Size size, Size kept);

// Bilinear upsampling to `size` (half-pixel centres, coordinates as PyTorch's align_corners=False), then the first
// largest class of every pixel; `labels.size` keeps the top-left part. Values are float32, interpolated along y, then
// along x, as low + (high - low) * fraction with every operation rounded, so that labels are the same for any number
// of threads and any instruction set.
//
// Label is std::uint8_t (K <= 256) or std::int16_t (K <= 32768). threads: 0 chooses by size and machine.
// Throws std::invalid_argument as check_sizes does, for more classes than Label holds, and for a score that is NaN,
// infinite or beyond 8e37 in magnitude: a NaN has no place in an order, and an engine that makes one should be heard.
template <class Label>
void upsample_argmax(const MasksView& masks, Size size, const LabelsView<Label>& labels, int threads = 0,
                     Simd simd = Simd::automatic);

extern template void upsample_argmax<std::uint8_t>(const MasksView&, Size, const LabelsView<std::uint8_t>&, int, Simd);
extern template void upsample_argmax<std::int16_t>(const MasksView&, Size, const LabelsView<std::int16_t>&, int, Simd);

}  // namespace segmenter_trt
