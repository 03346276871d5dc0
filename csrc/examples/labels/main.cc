// Masks of three classes on a 2x2 grid, as labels of 4x8 pixels.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "segmenter_trt/upsample_argmax.h"
#include "segmenter_trt/version.h"

int main() {
  const std::vector<float> masks = {1, 0, 0, 0,   // class 0: top left
                                    0, 1, 0, 0,   // class 1: top right
                                    0, 0, 1, 1};  // class 2: below
  const segmenter_trt::Size size = {4, 8};
  std::vector<std::uint8_t> labels(static_cast<std::size_t>(size.height * size.width));
  try {
    segmenter_trt::upsample_argmax<std::uint8_t>({masks.data(), 1, 3, 2, 2}, size, {labels.data(), size});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  std::printf("segmenter_trt %s\n", segmenter_trt::build_info().version);
  for (std::int64_t y = 0; y < size.height; ++y) {
    for (std::int64_t x = 0; x < size.width; ++x)
      std::printf("%d", labels[static_cast<std::size_t>(y * size.width + x)]);
    std::printf("\n");
  }
  return 0;
}
