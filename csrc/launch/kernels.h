// The compiled kernels in this library and how each is launched: tables that embed.py writes from the manifest of
// `python -m segmenter_kernels.aot`, where their meaning is documented (kernels/segmenter_kernels/parameters.py).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace segmenter_launch {

enum class Op : std::uint8_t { attention, patch_embed, mask_scores, upsample_argmax, merge_windows, resize, normalize };
enum class Type : std::uint8_t { fp16, bf16, fp32, u8 };
enum class Kind : std::uint8_t { pointer, i32, fp32, map, shape, stride, scratch };

constexpr std::size_t kMaxParameters = 64, kMaxMaps = 8, kMaxRank = 5;

// What a program copies at a time through a tensor map, slowest axis first; swizzle as CUtensorMapSwizzle.
struct Box {
  std::array<std::uint32_t, kMaxRank> sides;
  std::uint32_t rank;
  int swizzle;
};

// One parameter of the machine code: an argument of the kernel, or a part of its descriptor.
struct Parameter {
  std::string_view name;
  Kind kind;
  std::uint8_t axis;  // of a shape or stride
  std::uint16_t bytes;
  bool aligned;    // compiled for multiples of 16
  const Box* box;  // of a map
};

struct Constant {
  std::string_view name;
  int value;
};

// Machine code for one architecture (80 is compute capability 8.0).
struct Form {
  int architecture;
  bool exact;  // runs on that architecture alone, not on later ones of the same major version
  bool ptx;    // also there as PTX, which the driver compiles for any later architecture
  const char* symbol;
  unsigned threads, shared_bytes;
  std::span<const Parameter> parameters;
  std::span<const Constant> constants;

  // Value of a constant; throws Failure for one it lacks.
  int constant(std::string_view name) const;
};

// One fatbin: the same kernel for several architectures, in ascending order.
struct Image {
  const char* name;
  Op op;
  Type type;
  int size;  // head dimension, patch size, padded classes, or rows between two source rows; 0 of others
  const unsigned char* code;
  std::span<const Form> forms;
};

struct Kernels {
  std::span<const Image> images;
  const char* hash;  // of the manifest: other kernels have other timings
};

// All that this library holds.
extern const Kernels kKernels;

}  // namespace segmenter_launch
