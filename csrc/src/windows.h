// Windows of one image through a session.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "segmenter_trt/session.h"

namespace segmenter_trt {

// An image the windows are cut from: colours, or normalised float32 planes.
struct Source {
  std::int64_t H, W;
  const std::uint8_t* pixels;  // [H, W, 3], or null
  const float* planes;         // [3, H, W], or null
};

// Runs windows of one image through a session, a batch at a time.
class Windows {
 public:
  Windows(Session& session, const Source& source, const WindowOptions& options)
      : session_(session),
        source_(source),
        window_(options.window),
        batch_(options.batch),
        least_(session.engine().manifest().batch.min),
        between_(options.between) {
    const auto elements = static_cast<std::size_t>(std::max(batch_, least_) * window_ * window_ * 3);
    if (source.pixels != nullptr) {
      pixels_.resize(elements);
    } else {
      planes_.resize(elements);
    }
  }

  // Calls use(index, masks of one window) for the windows at `columns` of pixel row `y`. A batch smaller than the
  // engine takes is filled up with what its memory holds.
  template <class Use>
  void row(std::int64_t y, const std::vector<std::int64_t>& columns, const Use& use) {
    const auto total = static_cast<std::int64_t>(columns.size());
    for (std::int64_t first = 0; first < total; first += batch_) {
      const std::int64_t count = std::min(batch_, total - first);
      for (std::int64_t i = 0; i < count; ++i) cut(y, columns[static_cast<std::size_t>(first + i)], i);
      const std::int64_t B = std::max(count, least_);
      if (between_ && ran_) between_();
      ran_ = true;
      const MasksView masks = source_.pixels != nullptr
                                  ? session_.masks(ImagesView{pixels_.data(), B, window_, window_})
                                  : session_.masks(NormalizedView{planes_.data(), B, window_, window_});
      for (std::int64_t i = 0; i < count; ++i) {
        MasksView one = masks;
        one.B = 1;
        one.data += i * masks.K * masks.h * masks.w;
        use(static_cast<std::size_t>(first + i), one);
      }
    }
  }

 private:
  void cut(std::int64_t y, std::int64_t x, std::int64_t index) {
    for (std::int64_t row = 0; row < window_; ++row) {
      if (source_.pixels != nullptr) {
        const std::uint8_t* const from = source_.pixels + ((y + row) * source_.W + x) * 3;
        std::copy_n(from, window_ * 3, pixels_.data() + (index * window_ + row) * window_ * 3);
        continue;
      }
      for (std::int64_t c = 0; c < 3; ++c) {
        const float* const from = source_.planes + (c * source_.H + y + row) * source_.W + x;
        std::copy_n(from, window_, planes_.data() + ((index * 3 + c) * window_ + row) * window_);
      }
    }
  }

  Session& session_;
  const Source source_;
  const std::int64_t window_, batch_, least_;
  const std::function<void()> between_;
  bool ran_ = false;
  std::vector<std::uint8_t> pixels_;
  std::vector<float> planes_;
};

}  // namespace segmenter_trt
