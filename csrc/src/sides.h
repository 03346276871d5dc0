// How messages name the size of an image.
#pragma once

#include <cstdint>
#include <string>

namespace segmenter_trt {

inline std::string sides(std::int64_t height, std::int64_t width) {
  return std::to_string(height) + "x" + std::to_string(width);
}

}  // namespace segmenter_trt
