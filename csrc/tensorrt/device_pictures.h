// What a session does to pictures on the GPU around its network: resized, normalised, cut into windows whose masks are
// merged to labels.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>

#include "backend.h"
#include "launcher.h"
#include "owners.h"

namespace segmenter_trt::tensorrt {

// Memory that grows to what is asked of it, and is kept. Nothing may be under way in it when it is replaced.
template <class Memory, Memory (*make)(const cuda::Driver&, std::size_t)>
class Kept {
 public:
  bool replaces(std::size_t bytes) const { return bytes_ != 0 && bytes > bytes_; }
  std::size_t bytes() const { return bytes_; }

  auto get(const cuda::Driver& driver, std::size_t bytes) {
    if (bytes > bytes_) {
      bytes_ = 0;
      memory_ = {};
      memory_ = make(driver, bytes);
      bytes_ = bytes;
    }
    return memory_.get();
  }

 private:
  Memory memory_;
  std::size_t bytes_ = 0;
};

// Everything is put on one stream, with the device's context current. The stream is waited for where memory must grow
// and where a filter must go for another; else pictures wait for no more than room in one of two buffers to be uploaded
// from. Throws RunError.
class DevicePictures {
 public:
  // input, preprocess: what the network is given of pictures.
  DevicePictures(const cuda::Driver& driver, segmenter_launch::Launcher& launcher, cuda::StreamHandle stream,
                 Input input, const Affine& preprocess)
      : driver_(driver),
        launcher_(launcher),
        stream_(stream),
        input_(input),
        preprocess_(preprocess),
        uploaded_{cuda::event(driver), cuda::event(driver)} {}

  // Whether the kernels take them, and their masks are few enough to be held all at once.
  bool merges(const WindowGrid& grid) const;
  bool resizes(const ImagesView& picture, Size size) const;

  // On the host, where the next picture to upload is written, uint8 RGB [H, W, 3]. Waits until the one before the last
  // is uploaded.
  void* stage(std::int64_t H, std::int64_t W);

  // The staged picture to windows: `begin`, then for each batch of them `cut` and, when the network has left their
  // masks, `keep`, then `merge`.
  void begin(const WindowGrid& grid);
  // Window number `index`, along rows first, to where the network reads it.
  void cut(const WindowGrid& grid, std::int64_t index, cuda::Address to) const;
  void keep(const WindowGrid& grid, std::int64_t first, std::int64_t count, cuda::Address masks) const;
  void merge(const WindowGrid& grid);
  // Once the stream has passed `merge`: the labels on the host, null where a score was no number.
  const void* labels() const {
    return *static_cast<const std::int32_t*>(odd_on_host_) == 0 ? labels_on_host_ : nullptr;
  }

  // The picture, resized, to where the network reads it.
  void resize(const ImagesView& picture, Size size, cuda::Address to);

 private:
  using Device = Kept<cuda::DeviceMemory, cuda::device_memory>;
  using Pinned = Kept<cuda::PinnedMemory, cuda::pinned_memory>;

  // A ResizeFilter where kernels read it.
  struct Filter {
    std::int64_t from, to, taps;
    cuda::DeviceMemory device;
    cuda::PinnedMemory host;
    cuda::Address weights;
  };

  cuda::Address memory(Device& kept, std::size_t bytes);
  void put(const segmenter_launch::Call& call);
  void upload(std::int64_t H, std::int64_t W);
  void normalize(cuda::Address pixels, std::int64_t count, cuda::Address planes);
  const Filter& filter(std::int64_t from, std::int64_t to);

  const cuda::Driver& driver_;
  segmenter_launch::Launcher& launcher_;
  const cuda::StreamHandle stream_;
  const Input input_;
  const Affine preprocess_;
  // Halves of on_host_ take turns; the stream has passed what it read of one when it has passed the half's event.
  std::array<cuda::Event, 2> uploaded_;
  std::size_t half_ = 0;    // that is staged
  void* staged_ = nullptr;  // there
  Pinned on_host_;
  Pinned labels_, odd_, table_on_host_;  // odd_: zero, and behind it what came back
  Device picture_, planes_, masks_, found_, flag_, table_;
  bool tabled_ = false;           // whether table_ is filled
  std::array<Device, 2> passes_;  // of resizing
  std::list<Filter> filters_;     // the last used in front
  cuda::Address picture_at_ = 0;  // uint8 [H, W, 3]
  cuda::Address source_at_ = 0;   // of windows: those pixels, or float32 [3, H, W]
  cuda::Address masks_at_ = 0;
  void *labels_on_host_ = nullptr, *odd_on_host_ = nullptr;
};

}  // namespace segmenter_trt::tensorrt
