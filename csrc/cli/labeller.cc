#include "labeller.h"

#include <algorithm>
#include <array>
#include <string>

#include "segmenter_trt/errors.h"
#include "segmenter_trt/resize.h"

namespace segmenter_trt::cli {
namespace {

std::size_t area(const Picture& picture) { return static_cast<std::size_t>(picture.H * picture.W); }

// Labels to another size, each pixel's from the one its centre falls into.
template <class Label>
void to_size(const std::vector<Label>& from, std::int64_t h, std::int64_t w, Labels& to) {
  for (std::int64_t y = 0; y < to.H; ++y) {
    const std::int64_t row = std::min(h - 1, (2 * y + 1) * h / (2 * to.H)) * w;
    for (std::int64_t x = 0; x < to.W; ++x) {
      const std::int64_t column = std::min(w - 1, (2 * x + 1) * w / (2 * to.W));
      to.classes[static_cast<std::size_t>(y * to.W + x)] = from[static_cast<std::size_t>(row + column)];
    }
  }
}

}  // namespace

Labeller::Labeller(const Options& options)
    : session_(Engine::open(options.engine, options.runtime)),
      window_{.window = options.window, .stride = options.stride, .batch = options.window_batch} {}

Picture Labeller::fitted(const Picture& picture) const {
  const Range &height = manifest().height, &width = manifest().width;
  if (window_.window != 0 || (height.holds(picture.H) && width.holds(picture.W))) return picture;
  Picture resized = {height.opt, width.opt, {}};
  resized.pixels.resize(area(resized) * 3);
  resize({picture.pixels.data(), 1, picture.H, picture.W}, {resized.pixels.data(), resized.H, resized.W});
  return resized;
}

template <class Label>
void Labeller::run_as(const Picture& fitted, std::vector<Label>& labels) {
  labels.resize(area(fitted));
  const ImagesView pixels = {fitted.pixels.data(), 1, fitted.H, fitted.W};
  const LabelsView<Label> view = {labels.data(), {fitted.H, fitted.W}};
  if (window_.window != 0) {
    run_sliding_window(session_, pixels, view, window_);
  } else {
    session_.run(pixels, view);
  }
}

void Labeller::run(const Picture& fitted) {
  if (manifest().K() > 256) {
    run_as(fitted, wide_);
  } else {
    run_as(fitted, narrow_);
  }
}

const Labels& Labeller::label(const Picture& picture) {
  const Picture input = fitted(picture);
  run(input);
  labels_.H = picture.H;
  labels_.W = picture.W;
  labels_.classes.resize(area(picture));
  if (manifest().K() > 256) {
    to_size(wide_, input.H, input.W, labels_);
  } else {
    to_size(narrow_, input.H, input.W, labels_);
  }
  // a plan makes its labels itself, and each is a place in the palette
  const auto [least, most] = std::minmax_element(labels_.classes.begin(), labels_.classes.end());
  if (*least < 0 || *most >= manifest().K()) {
    throw RunError("labels: class " + std::to_string(*least < 0 ? *least : *most) + ", and the manifest names " +
                   std::to_string(manifest().K()) + "; make the engine again");
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
