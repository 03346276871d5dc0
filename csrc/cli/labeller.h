// Pictures of any size to labels of that size, by one session.
#pragma once

#include <cstdint>
#include <vector>

#include "options.h"
#include "pictures.h"
#include "segmenter_trt/session.h"
#include "segmenter_trt/sliding_window.h"

namespace segmenter_trt::cli {

class Labeller {
 public:
  explicit Labeller(const Options& options);

  // Through windows where there are any, and else resized to the engine's size, with labels resized back.
  const Labels& label(const Picture& picture);

  // The picture as `run` takes it: resized where it must be.
  Picture fitted(const Picture& picture) const;

  // The network and what makes its labels, without files and resizing: what --time times.
  void run(const Picture& fitted);

  const Manifest& manifest() const noexcept { return session_.engine().manifest(); }
  Description describe() const { return session_.describe(); }

 private:
  template <class Label>
  void run_as(const Picture& fitted, std::vector<Label>& labels);

  Session session_;
  WindowOptions window_;
  std::vector<std::uint8_t> narrow_;  // labels of up to 256 classes
  std::vector<std::int16_t> wide_;
  Labels labels_;
};

// The picture with its classes' colours blended over it; alpha is their share.
Picture overlay(const Picture& picture, const Labels& labels, Palette palette, float alpha);

}  // namespace segmenter_trt::cli
