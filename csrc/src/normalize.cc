#include "segmenter_trt/normalize.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "dispatch.h"
#include "normalize_planes.h"
#include "sides.h"
#include "workers.h"

namespace segmenter_trt {
namespace {

constexpr std::int64_t kNormalizedPixelsPerThread = 1 << 18;

}  // namespace

void check_sizes(const ImagesView& images, std::int64_t H, std::int64_t W) {
  if (images.B < 0 || images.H < 1 || images.W < 1) {
    throw std::invalid_argument("images " + sides(images.H, images.W) + ": wanted at least one pixel");
  }
  if (H < images.H || W < images.W) {
    throw std::invalid_argument("output " + sides(H, W) + " is smaller than the " + sides(images.H, images.W) +
                                " images; pad only makes larger, crop or resize first");
  }
}

void normalize_planes(const ImagesView& images, const float scale[3], const float shift[3], const PlanesView& planes,
                      int threads, Simd simd, Workers& workers) {
  check_sizes(images, planes.H, planes.W);
  const auto normalize_row = kernels(simd).normalize_row;
  const std::int64_t plane = planes.H * planes.W;
  const std::int64_t tasks = images.B * planes.H;
  threads = choose_threads(threads, tasks, images.B * plane, kNormalizedPixelsPerThread);
  std::atomic<std::int64_t> next = 0;
  workers.run(threads, [&](int) {
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const std::int64_t b = task / planes.H;
      const std::int64_t y = task % planes.H;
      float* const out = planes.data + b * 3 * plane + y * planes.W;
      const std::int64_t written = y < images.H ? images.W : 0;
      if (written > 0) {
        normalize_row(images.data + (b * images.H + y) * images.W * 3, images.W, scale, shift, out, plane);
      }
      for (int c = 0; c < 3; ++c) std::fill(out + c * plane + written, out + c * plane + planes.W, 0.0f);
    }
  });
}

void normalize(const ImagesView& images, const float scale[3], const float shift[3], const PlanesView& planes,
               int threads, Simd simd) {
  Workers workers;
  normalize_planes(images, scale, shift, planes, threads, simd, workers);
}

}  // namespace segmenter_trt
