// Images and labels in memory of Python's, as the views that sessions take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "memory.h"
#include "segmenter_trt/normalize.h"

namespace segmenter_trt::bindings {

inline constexpr char kImages[] = "uint8 RGB [H, W, 3] or [B, H, W, 3]", kImage[] = "uint8 RGB [H, W, 3]";
inline constexpr char kNetworkInput[] =
    "uint8 RGB [H, W, 3] or [B, H, W, 3], or normalized float32 [3, H, W] or [B, 3, H, W]";

// Shape [B, ...] of one image or a batch of them, each of three dimensions; `channels` is the place of the 3.
struct Batch {
  std::int64_t B;
  const std::int64_t* rest;
  bool single;
};

// These throw InputError, which names what was wanted.
Batch batch_of(const Memory& memory, std::size_t channels, const char* wanted);
ImagesView pixels_of(const Memory& memory, const char* wanted);

bool single(const Memory& memory);
std::vector<py::ssize_t> shaped(bool single, std::int64_t B, std::initializer_list<std::int64_t> rest);

// Labels of images, `wide` where they are int16: what is wanted, whether memory is that, and memory of the caller's
// (`out`, None for a new array) to write them to.
struct Labels {
  py::object object;
  void* data;
  py::object kept;  // memory of `object`
};

std::string wanted_labels(const Memory& input, const ImagesView& view, bool wide);
void require_labels(const Memory& labels, const Memory& input, const ImagesView& view, bool wide);
Labels labels_for(const Memory& input, const ImagesView& view, bool wide, const py::object& out);

}  // namespace segmenter_trt::bindings
