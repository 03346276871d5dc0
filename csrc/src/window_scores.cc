#include "window_scores.h"

#include <algorithm>
#include <utility>

namespace segmenter_trt {

WindowScores::WindowScores(std::vector<std::int64_t> columns, std::int64_t window, std::int64_t K, std::int64_t h,
                           std::int64_t w, Size padded)
    : columns_(std::move(columns)),
      window_(window),
      K_(K),
      h_(h),
      w_(w),
      scores_(h, w, padded, {window, window}),
      across_(static_cast<std::size_t>(W())) {
  for (const std::int64_t x : columns_) {
    for (std::int64_t i = x; i < x + window_; ++i) ++across_[static_cast<std::size_t>(i)];
  }
}

void WindowScores::start_row(std::int64_t y) {
  rows_.push_back({y, {}});
  rows_.back().masks.reserve(columns_.size() * static_cast<std::size_t>(K_ * h_ * w_));
}

void WindowScores::add(const float* masks) {
  std::vector<float>& kept = rows_.back().masks;
  kept.insert(kept.end(), masks, masks + K_ * h_ * w_);
}

void WindowScores::drop_above(std::int64_t y) {
  while (!rows_.empty() && rows_.front().y + window_ <= y) rows_.pop_front();
}

bool WindowScores::overlaps(std::int64_t y) const {
  const auto on =
      std::count_if(rows_.begin(), rows_.end(), [&](const Row& row) { return row.y <= y && y < row.y + window_; });
  return on > 1 || *std::max_element(across_.begin(), across_.end()) > 1;
}

WindowScores::Scratch WindowScores::scratch() const {
  return {std::vector<float>(static_cast<std::size_t>(K_ * window_)), std::vector<float>(static_cast<std::size_t>(w_)),
          std::vector<std::int32_t>(static_cast<std::size_t>(W()))};
}

const std::int32_t* WindowScores::read(std::int64_t y, bool overlapping_only, float* mean, Scratch& scratch) const {
  std::int32_t down = 0;
  for (const Row& row : rows_) down += row.y <= y && y < row.y + window_ ? 1 : 0;
  const std::int64_t width = W();
  for (std::int64_t x = 0; x < width; ++x) {
    scratch.count[static_cast<std::size_t>(x)] = down * across_[static_cast<std::size_t>(x)];
  }
  const std::int32_t* const count = scratch.count.data();
  std::fill(mean, mean + K_ * width, 0.0f);
  for (const Row& row : rows_) {
    if (y < row.y || y >= row.y + window_) continue;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const std::int64_t left = columns_[i];
      // the part of the window that matters
      std::int64_t begin = 0;
      std::int64_t end = window_;
      while (overlapping_only && begin < end && count[left + begin] == 1) ++begin;
      while (overlapping_only && begin < end && count[left + end - 1] == 1) --end;
      if (begin == end) continue;
      const float* const masks = row.masks.data() + static_cast<std::int64_t>(i) * K_ * h_ * w_;
      scores_.read(masks, K_, y - row.y, begin, end, scratch.one.data(), window_, scratch.line.data());
      for (std::int64_t k = 0; k < K_; ++k) {
        float* const sum = mean + k * width + left + begin;
        const float* const one = scratch.one.data() + k * window_;
        for (std::int64_t x = 0; x < end - begin; ++x) sum[x] += one[x];
      }
    }
  }
  if (down > 1 || overlapping_only || *std::max_element(across_.begin(), across_.end()) > 1) {
    for (std::int64_t k = 0; k < K_; ++k) {
      for (std::int64_t x = 0; x < width; ++x) mean[k * width + x] /= static_cast<float>(count[x]);
    }
  }
  return count;
}

}  // namespace segmenter_trt
