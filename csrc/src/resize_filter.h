// How much of which pixels makes each pixel of a resized side: what `resize` applies, here and on a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "segmenter_trt/resize.h"

namespace segmenter_trt {

inline constexpr int kResizePrecision = 22;  // bits after the point: 8 for the colour and 2 spare ones fill an int32

// The pixels of the old side that make one of the new, and how much of each.
struct Tap {
  std::int64_t first;
  std::int32_t count;
  const std::int32_t* weights;
};

// One side of the image, from its old length to its new one.
class ResizeFilter {
 public:
  ResizeFilter(std::int64_t from, std::int64_t to);

  Tap operator[](std::int64_t pixel) const {
    const auto index = static_cast<std::size_t>(pixel);
    return {first_[index], count_[index], weights_.data() + index * static_cast<std::size_t>(taps_)};
  }

  std::int64_t taps() const noexcept { return taps_; }                            // of a pixel, at most
  const std::vector<std::int32_t>& first() const noexcept { return first_; }      // [to]
  const std::vector<std::int32_t>& weights() const noexcept { return weights_; }  // [to, taps], 0 behind the last

 private:
  std::int64_t taps_;
  std::vector<std::int32_t> first_, count_, weights_;
};

// The order decides how the first pass rounds, so it is part of the result: Pillow's, since release 13.
bool columns_first(const ImagesView& images, Size size);

}  // namespace segmenter_trt
