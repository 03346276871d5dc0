#include "labeller.h"

#include <algorithm>
#include <array>
#include <string>

#include "segmenter_trt/errors.h"
#include "segmenter_trt/resize.h"

namespace segmenter_trt::cli {
namespace {

std::size_t area(const Picture& picture) { return static_cast<std::size_t>(picture.H * picture.W); }
std::size_t area(Size size) { return static_cast<std::size_t>(size.height * size.width); }

bool same(Size a, Size b) { return a.height == b.height && a.width == b.width; }

// Labels to another size, each pixel's from the one its centre falls into.
template <class Label>
void to_size(const Label* from, std::int64_t h, std::int64_t w, Labels& to) {
  for (std::int64_t y = 0; y < to.H; ++y) {
    const std::int64_t row = std::min(h - 1, (2 * y + 1) * h / (2 * to.H)) * w;
    for (std::int64_t x = 0; x < to.W; ++x) {
      const std::int64_t column = std::min(w - 1, (2 * x + 1) * w / (2 * to.W));
      to.classes[static_cast<std::size_t>(y * to.W + x)] = from[row + column];
    }
  }
}

}  // namespace

Labeller::Labeller(const Options& options)
    : session_(Engine::open(options.engine, options.runtime)),
      window_{.window = options.window, .stride = options.stride, .batch = options.window_batch},
      // of windows, one picture fills a call
      batch_(options.window != 0 ? 1 : static_cast<std::size_t>(std::max(options.batch, manifest().batch.min))) {
  // said before pictures are read for it
  if (options.window == 0 && !manifest().batch.holds(static_cast<std::int64_t>(batch_))) {
    throw InputError("--batch " + std::to_string(batch_) + ": this engine takes at most " +
                     std::to_string(manifest().batch.max) + "; pass that, or build it for more");
  }
}

void Labeller::require(const Picture& picture) const {
  if (window_.window != 0) require_enlargeable(picture.H, picture.W, window_.window);
}

// What the network is given of a picture: the nearest size it takes, as `segmenter label` has it.
Size Labeller::fitted_size(const Picture& picture) const {
  if (window_.window != 0) return {picture.H, picture.W};
  const Range &height = manifest().height, &width = manifest().width;
  return {std::clamp(picture.H, height.min, height.max), std::clamp(picture.W, width.min, width.max)};
}

Picture Labeller::fitted(const Picture& picture) const {
  const Size size = fitted_size(picture);
  if (same(size, {picture.H, picture.W})) return picture;
  Picture resized = {size.height, size.width, {}};
  resized.pixels.resize(area(resized) * 3);
  resize({picture.pixels.data(), 1, picture.H, picture.W}, {resized.pixels.data(), resized.H, resized.W});
  return resized;
}

template <class Label>
void Labeller::run_as(std::span<const Picture> fitted, std::vector<Label>& labels) {
  const Picture& first = fitted.front();
  const Size size = {first.H, first.W};
  if (window_.window != 0) {
    labels.resize(area(first));
    run_sliding_window(session_, {first.pixels.data(), 1, first.H, first.W}, LabelsView<Label>{labels.data(), size},
                       window_);
    return;
  }
  const auto count = std::max(fitted.size(), static_cast<std::size_t>(manifest().batch.min));
  const std::uint8_t* pixels = first.pixels.data();
  if (count != 1) {
    pixels_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      const Picture& picture = fitted[std::min(i, fitted.size() - 1)];
      pixels_.insert(pixels_.end(), picture.pixels.begin(), picture.pixels.end());
    }
    pixels = pixels_.data();
  }
  labels.resize(count * area(first));
  session_.run({pixels, static_cast<std::int64_t>(count), first.H, first.W}, LabelsView<Label>{labels.data(), size});
}

void Labeller::run(std::span<const Picture> fitted) {
  if (manifest().K() > kMostByteClasses) {
    run_as(fitted, wide_);
  } else {
    run_as(fitted, narrow_);
  }
}

template <class Label>
void Labeller::run_resized_as(std::span<const Picture> pictures, Size size, std::vector<Label>& labels) {
  views_.clear();
  for (std::size_t i = 0; i < std::max(pictures.size(), static_cast<std::size_t>(manifest().batch.min)); ++i) {
    const Picture& picture = pictures[std::min(i, pictures.size() - 1)];
    views_.push_back({picture.pixels.data(), 1, picture.H, picture.W});
  }
  labels.resize(views_.size() * area(size));
  session_.run_resized(views_, LabelsView<Label>{labels.data(), size});
}

void Labeller::run_resized(std::span<const Picture> pictures, Size size) {
  if (manifest().K() > kMostByteClasses) {
    run_resized_as(pictures, size, wide_);
  } else {
    run_resized_as(pictures, size, narrow_);
  }
}

// Those of the picture at a place in the last call.
Labels Labeller::labels_of(const Picture& picture, Size fitted, std::size_t place) const {
  Labels labels = {picture.H, picture.W, {}};
  labels.classes.resize(area(picture));
  if (manifest().K() > kMostByteClasses) {
    to_size(wide_.data() + place * area(fitted), fitted.height, fitted.width, labels);
  } else {
    to_size(narrow_.data() + place * area(fitted), fitted.height, fitted.width, labels);
  }
  // a plan makes its labels itself, and each is a place in the palette
  const auto [least, most] = std::minmax_element(labels.classes.begin(), labels.classes.end());
  if (*least < 0 || *most >= manifest().K()) {
    throw RunError("labels: class " + std::to_string(*least < 0 ? *least : *most) + ", and the manifest names " +
                   std::to_string(manifest().K()) + "; make the engine again");
  }
  return labels;
}

const std::vector<Labels>& Labeller::label(std::span<const Picture> pictures) {
  labels_.clear();
  for (std::size_t first = 0, past = 0; first < pictures.size(); first = past) {
    const Size size = fitted_size(pictures[first]);
    bool as_they_are = true;
    for (past = first; past < pictures.size() && past - first < batch_; ++past) {
      if (!same(fitted_size(pictures[past]), size)) break;
      as_they_are &= same({pictures[past].H, pictures[past].W}, size);
    }
    const std::span<const Picture> some = pictures.subspan(first, past - first);
    if (as_they_are) {
      run(some);
    } else {
      run_resized(some, size);
    }
    for (std::size_t i = 0; i < some.size(); ++i) labels_.push_back(labels_of(some[i], size, i));
  }
  return labels_;
}

Picture overlay(const Picture& picture, const Labels& labels, Palette palette, float alpha) {
  Picture blended = picture;
  for (std::size_t i = 0; i < labels.classes.size(); ++i) {
    const std::array<std::uint8_t, 3>& colour = palette[static_cast<std::size_t>(labels.classes[i])];
    for (std::size_t c = 0; c < 3; ++c) {
      const auto seen = static_cast<float>(picture.pixels[i * 3 + c]);
      blended.pixels[i * 3 + c] =
          static_cast<std::uint8_t>(seen + alpha * (static_cast<float>(colour[c]) - seen) + 0.5F);
    }
  }
  return blended;
}

}  // namespace segmenter_trt::cli
