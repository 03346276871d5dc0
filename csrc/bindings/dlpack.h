// DLPack's C structures, as far as they are read here: https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace segmenter_trt::dlpack {

inline constexpr std::int32_t kCpu = 1, kCuda = 2, kCudaHost = 3, kRocmHost = 11, kCudaManaged = 13;

inline constexpr std::uint64_t kReadOnly = 1;

struct Device {
  std::int32_t type, index;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t dimensions;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null when contiguous
  std::uint64_t byte_offset;
};

// In capsules named "dltensor".
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

// In capsules named "dltensor_versioned"; a later major version would be another structure.
struct ManagedVersioned {
  std::uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

}  // namespace segmenter_trt::dlpack
