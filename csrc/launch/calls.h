// Each op's launch: which kernel serves a shape, its grid, and the value of every argument by name. The same arithmetic
// as in the launchers of kernels/segmenter_kernels, which a test holds these against.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "kernels.h"

namespace segmenter_launch {

// An argument: a pointer, an integer, a float, or the pointer of a descriptor with shape and strides (in elements).
struct Value {
  std::string_view name;
  const void* pointer = nullptr;
  std::int64_t integer = 0;
  float number = 0;
  std::array<std::int64_t, 3> shape{}, strides{};
};

class Launch {
 public:
  std::array<std::int64_t, 2> grid{1, 1};

  void pointer(std::string_view name, const void* value) { values_[count_++] = {.name = name, .pointer = value}; }
  void integer(std::string_view name, std::int64_t value) { values_[count_++] = {.name = name, .integer = value}; }
  void number(std::string_view name, float value) { values_[count_++] = {.name = name, .number = value}; }
  void descriptor(std::string_view name, const void* pointer, std::array<std::int64_t, 3> shape) {
    values_[count_++] = {name, pointer, 0, 0, shape, {shape[1] * shape[2], shape[2], 1}};
  }
  // Null when there is no such argument.
  const Value* find(std::string_view name) const noexcept;

 private:
  std::array<Value, 24> values_;
  std::size_t count_ = 0;
};

// `choose` throws Failure when no image serves the shape, `launch` when the form cannot take it. B may be 0: then there
// is nothing to launch. Tensors are dense, last axis fastest.

// qkv [B, N, 3 A D] to out [B, N, A D].
struct AttentionCall {
  Type type;
  std::int64_t B, N, A, D;
  const void* qkv;
  void* out;

  const Image& choose(std::span<const Image> images) const;
  Launch launch(const Form& form) const;
};

// image [B, 3, h P, w P] to out [B, E + h w, C].
struct PatchEmbedCall {
  Type type;
  std::int64_t B, h, w, P, C, E;
  const void *image, *weight, *bias, *position, *tokens;
  void* out;

  const Image& choose(std::span<const Image> images) const;
  Launch launch(const Form& form) const;
};

// patches [B, N, C], classes [B, K, C] to out [B, N, K].
struct MaskScoresCall {
  Type type;
  std::int64_t B, N, K, C;
  float epsilon;
  const void *patches, *classes, *weight, *bias;
  void* out;

  const Image& choose(std::span<const Image> images) const;
  Launch launch(const Form& form) const;
};

// masks [B, h, w, K] as H x W, of which rows x columns become labels int32 [B, rows, columns].
struct UpsampleArgmaxCall {
  Type type;
  std::int64_t B, h, w, K, H, W, rows, columns;
  const void* masks;
  void* labels;

  const Image& choose(std::span<const Image> images) const;
  Launch launch(const Form& form) const;
};

// fp32 masks [rows x columns, K, h, w] of a picture's windows, padded to side_y x side_x, to labels [H, W]: uint8,
// int16 when K > 256; and 1 to `odd`, int32, where a score is no number or near the end of what fp32 holds.
struct MergeWindowsCall {
  std::int64_t K, h, w, side_y, side_x, H, W, window, stride, rows, columns;
  const void* masks;
  void *labels, *odd;

  const Image& choose(std::span<const Image> images) const;
  Launch launch(const Form& form) const;
};

// One side of images, uint8 [outer, length, inner] to [outer, to, inner]: element t of the new side is made of `taps`
// of the old from first[t] on, int32 [to], each by its weight, int32 [to, taps].
struct ResizeCall {
  std::int64_t outer, length, to, inner, taps;
  const void *images, *first, *weights;
  void* resized;

  const Image& choose(std::span<const Image> images) const;
  Launch launch(const Form& form) const;
};

// images uint8 [B, pixels, 3] to planes fp32 [B, 3, pixels], by what each value of each colour becomes: fp32 [3, 256].
struct NormalizeCall {
  std::int64_t B, pixels;
  const void *images, *table;
  void* planes;

  const Image& choose(std::span<const Image> images) const;
  Launch launch(const Form& form) const;
};

using Call = std::variant<AttentionCall, PatchEmbedCall, MaskScoresCall, UpsampleArgmaxCall, MergeWindowsCall,
                          ResizeCall, NormalizeCall>;

}  // namespace segmenter_launch
