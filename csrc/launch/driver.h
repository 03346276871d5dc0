// The few functions of the CUDA driver that launching needs, found at run time: neither toolkit nor driver is needed to
// build or load the plugins. Names and values are those of cuda.h, against which a test holds them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// at global scope, where TensorRT's headers have it too
struct CUstream_st;

namespace segmenter_launch {

using Result = int;
using Device = int;
using Library = struct CUlib_st*;
using Kernel = struct CUkern_st*;
using Function = struct CUfunc_st*;
using Stream = CUstream_st*;

constexpr Result kSuccess = 0;
constexpr int kMajor = 75, kMinor = 76;                                  // CUdevice_attribute
constexpr int kPtxVersion = 5, kMaxDynamicSharedBytes = 8;               // CUfunction_attribute
constexpr int kFloat16 = 6, kBfloat16 = 9;                               // CUtensorMapDataType
constexpr int kNoInterleave = 0, kPromoteTo128Bytes = 2, kFillZero = 0;  // the other enumerations of tensor maps

struct alignas(128) TensorMap {
  std::array<std::uint64_t, 16> words;
};

struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned shared_bytes;
  Stream stream;
  void* attributes;
  unsigned attribute_count;
};

struct Driver {
  Result (*init)(unsigned flags);
  Result (*driver_version)(int* version);
  Result (*current_device)(Device* device);
  Result (*device_attribute)(int* value, int attribute, Device device);
  Result (*error_name)(Result error, const char** name);
  Result (*load_library)(Library* library, const void* code, const int* jit_options, void** jit_values, unsigned jits,
                         const int* options, void** values, unsigned count);
  Result (*get_kernel)(Kernel* kernel, Library library, const char* name);
  Result (*get_function)(Function* function, Kernel kernel);
  Result (*get_kernel_attribute)(int* value, int attribute, Kernel kernel, Device device);
  Result (*set_kernel_attribute)(int attribute, int value, Kernel kernel, Device device);
  // null before CUDA 12.4
  Result (*parameter_info)(Kernel kernel, std::size_t index, std::size_t* offset, std::size_t* bytes);
  Result (*encode_tiled)(TensorMap* map, int type, std::uint32_t rank, void* address, const std::uint64_t* sides,
                         const std::uint64_t* stride_bytes, const std::uint32_t* box, const std::uint32_t* steps,
                         int interleave, int swizzle, int promotion, int fill);
  Result (*launch)(const LaunchConfig* config, Function function, void** parameters, void** extra);

  // The driver in a shared library, initialised. Throws Failure when it is missing, too old, or finds no GPU.
  static Driver open(const std::string& library);

  // Throws Failure naming the function, what it was called for, and the driver's error, unless the result is a success.
  void check(Result result, const char* function, std::string_view subject = {}) const;
};

}  // namespace segmenter_launch
