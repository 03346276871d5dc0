// Holds the declarations of launch/driver.h and cuda/driver.h against NVIDIA's cuda.h, where there is one; compiled,
// never run.
#include <cuda.h>

#include <cstddef>

#include "../../cuda/driver.h"
#include "../../launch/driver.h"

namespace own = segmenter_launch;
namespace cuda = segmenter_trt::cuda;

static_assert(own::kSuccess == CUDA_SUCCESS);
static_assert(own::kMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(own::kMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(own::kPtxVersion == CU_FUNC_ATTRIBUTE_PTX_VERSION);
static_assert(own::kMaxDynamicSharedBytes == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(own::kFloat16 == CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
static_assert(own::kBfloat16 == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
static_assert(own::kNoInterleave == CU_TENSOR_MAP_INTERLEAVE_NONE);
static_assert(own::kPromoteTo128Bytes == CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
static_assert(own::kFillZero == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
static_assert(sizeof(own::TensorMap) == sizeof(CUtensorMap) && alignof(own::TensorMap) == alignof(CUtensorMap));
static_assert(sizeof(own::LaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(own::LaunchConfig, grid_z) == offsetof(CUlaunchConfig, gridDimZ));
static_assert(offsetof(own::LaunchConfig, block_x) == offsetof(CUlaunchConfig, blockDimX));
static_assert(offsetof(own::LaunchConfig, shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(own::LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(own::LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(own::LaunchConfig, attribute_count) == offsetof(CUlaunchConfig, numAttrs));

// Whether a function of cuda.h takes as many arguments of the same sizes as ours.
template <class... Theirs, class... Ours>
constexpr bool alike(CUresult (*)(Theirs...), own::Result (*)(Ours...)) {
  if constexpr (sizeof...(Theirs) == sizeof...(Ours)) {
    return ((sizeof(Theirs) == sizeof(Ours)) && ...);
  } else {
    return false;
  }
}

constexpr own::Driver kNone{};
static_assert(alike(decltype(&cuInit){}, kNone.init));
static_assert(alike(decltype(&cuDriverGetVersion){}, kNone.driver_version));
static_assert(alike(decltype(&cuCtxGetDevice){}, kNone.current_device));
static_assert(alike(decltype(&cuDeviceGetAttribute){}, kNone.device_attribute));
static_assert(alike(decltype(&cuGetErrorName){}, kNone.error_name));
static_assert(alike(decltype(&cuLibraryLoadData){}, kNone.load_library));
static_assert(alike(decltype(&cuLibraryGetKernel){}, kNone.get_kernel));
static_assert(alike(decltype(&cuKernelGetFunction){}, kNone.get_function));
static_assert(alike(decltype(&cuKernelGetAttribute){}, kNone.get_kernel_attribute));
static_assert(alike(decltype(&cuKernelSetAttribute){}, kNone.set_kernel_attribute));
static_assert(alike(decltype(&cuKernelGetParamInfo){}, kNone.parameter_info));
static_assert(alike(decltype(&cuTensorMapEncodeTiled){}, kNone.encode_tiled));
static_assert(alike(decltype(&cuLaunchKernelEx){}, kNone.launch));

// What the TensorRT backend copies pictures by.
static_assert(cuda::kDeviceMemory == CU_MEMORYTYPE_DEVICE);
static_assert(sizeof(cuda::Copy3D) == sizeof(CUDA_MEMCPY3D));
static_assert(offsetof(cuda::Copy3D, from.memory) == offsetof(CUDA_MEMCPY3D, srcMemoryType));
static_assert(offsetof(cuda::Copy3D, from.device) == offsetof(CUDA_MEMCPY3D, srcDevice));
static_assert(offsetof(cuda::Copy3D, from.pitch_bytes) == offsetof(CUDA_MEMCPY3D, srcPitch));
static_assert(offsetof(cuda::Copy3D, from.height) == offsetof(CUDA_MEMCPY3D, srcHeight));
static_assert(offsetof(cuda::Copy3D, to.x_bytes) == offsetof(CUDA_MEMCPY3D, dstXInBytes));
static_assert(offsetof(cuda::Copy3D, to.memory) == offsetof(CUDA_MEMCPY3D, dstMemoryType));
static_assert(offsetof(cuda::Copy3D, to.device) == offsetof(CUDA_MEMCPY3D, dstDevice));
static_assert(offsetof(cuda::Copy3D, to.pitch_bytes) == offsetof(CUDA_MEMCPY3D, dstPitch));
static_assert(offsetof(cuda::Copy3D, to.height) == offsetof(CUDA_MEMCPY3D, dstHeight));
static_assert(offsetof(cuda::Copy3D, width_bytes) == offsetof(CUDA_MEMCPY3D, WidthInBytes));
static_assert(offsetof(cuda::Copy3D, height) == offsetof(CUDA_MEMCPY3D, Height));
static_assert(offsetof(cuda::Copy3D, depth) == offsetof(CUDA_MEMCPY3D, Depth));
