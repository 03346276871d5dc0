#include "resize_filter.h"

#include <algorithm>
#include <cmath>

namespace segmenter_trt {

ResizeFilter::ResizeFilter(std::int64_t from, std::int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  // a triangle of one pixel to each side; wider where pixels vanish, so that each counts
  const double support = std::max(scale, 1.0);
  const auto most = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
  taps_ = static_cast<std::int64_t>(most);
  first_.reserve(static_cast<std::size_t>(to));
  count_.reserve(static_cast<std::size_t>(to));
  weights_.resize(static_cast<std::size_t>(to) * most);
  std::vector<double> exact(most);
  for (std::int64_t pixel = 0; pixel < to; ++pixel) {
    // Pillow rounds so, and other ways differ at halves
    const double center = (static_cast<double>(pixel) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5), 0);
    const auto end = std::min<std::int64_t>(static_cast<std::int64_t>(center + support + 0.5), from);
    const auto count = static_cast<std::int32_t>(end - first);
    double sum = 0;
    for (std::int32_t i = 0; i < count; ++i) {
      const double distance = std::abs((static_cast<double>(i + first) - center + 0.5) * (1.0 / support));
      exact[static_cast<std::size_t>(i)] = distance < 1.0 ? 1.0 - distance : 0.0;
      sum += exact[static_cast<std::size_t>(i)];
    }
    std::int32_t* const weights = weights_.data() + static_cast<std::size_t>(pixel) * most;
    for (std::int32_t i = 0; i < count; ++i) {
      const double share = sum == 0.0 ? exact[static_cast<std::size_t>(i)] : exact[static_cast<std::size_t>(i)] / sum;
      weights[i] = static_cast<std::int32_t>(0.5 + share * (1 << kResizePrecision));
    }
    first_.push_back(static_cast<std::int32_t>(first));
    count_.push_back(count);
  }
}

bool columns_first(const ImagesView& images, Size size) {
  return size.height < images.H && images.H - size.height > 2 * (images.W - size.width);
}

}  // namespace segmenter_trt
