// Pictures of any size to labels of that size, by one session.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "options.h"
#include "pictures.h"
#include "segmenter_trt/session.h"
#include "segmenter_trt/sliding_window.h"

namespace segmenter_trt::cli {

class Labeller {
 public:
  explicit Labeller(const Options& options);

  // Pictures in one call of `run`; 1 through windows, which fill a batch of the network themselves.
  std::size_t batch() const noexcept { return batch_; }

  // Throws InputError for a picture that cannot be labelled where others can.
  void require(const Picture& picture) const;

  // Through windows where there are any, and else resized to the nearest size the engine takes, with labels resized
  // back. Consecutive pictures that come to one size go into a call together, up to `batch` of them.
  const std::vector<Labels>& label(std::span<const Picture> pictures);

  // The picture as `run` takes it: resized where it must be.
  Picture fitted(const Picture& picture) const;

  // The network and what makes its labels, without files and resizing: what --time times. Pictures are of one size, and
  // the last is repeated where the engine takes no batch as small.
  void run(std::span<const Picture> fitted);

  const Manifest& manifest() const noexcept { return session_.engine().manifest(); }
  Description describe() const { return session_.describe(); }

 private:
  Size fitted_size(const Picture& picture) const;
  template <class Label>
  void run_as(std::span<const Picture> fitted, std::vector<Label>& labels);
  // Of pictures that come to `size`, resized by the session.
  void run_resized(std::span<const Picture> pictures, Size size);
  template <class Label>
  void run_resized_as(std::span<const Picture> pictures, Size size, std::vector<Label>& labels);
  Labels labels_of(const Picture& picture, Size fitted, std::size_t place) const;

  Session session_;
  WindowOptions window_;
  std::size_t batch_;
  std::vector<std::uint8_t> pixels_;  // of a batch
  std::vector<ImagesView> views_;     // of one to be resized
  std::vector<std::uint8_t> narrow_;  // labels of up to 256 classes
  std::vector<std::int16_t> wide_;
  std::vector<Labels> labels_;
};

// The picture with its classes' colours blended over it; alpha is their share.
Picture overlay(const Picture& picture, const Labels& labels, Palette palette, float alpha);

}  // namespace segmenter_trt::cli
