// The CUDA driver, opened when it is first needed: a machine without one loads everything else.
//
// Names, values and layouts are those of cuda.h (CUDA 12 and later), declared here so that no CUDA toolkit is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct CUctx_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;
struct CUstream_st;

namespace segmenter_trt::cuda {

using Status = int;  // CUresult; 0 is success
inline constexpr Status kOutOfMemory = 2;
using DeviceNumber = int;
using Address = unsigned long long;
using Context = CUctx_st*;
using StreamHandle = CUstream_st*;
using EventHandle = CUevent_st*;
using GraphHandle = CUgraph_st*;
using GraphExecHandle = CUgraphExec_st*;

// The driver's addresses are numbers, TensorRT's and those of a launch's arguments are pointers.
inline void* pointer(Address address) {
  return reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr)
}

// CUDA_MEMCPY3D
struct Copy3D {
  struct Place {
    std::size_t x_bytes = 0, y = 0, z = 0, level = 0;
    unsigned memory = 0;
    const void* host = nullptr;
    Address device = 0;
    void* array = nullptr;
    void* reserved = nullptr;
    std::size_t pitch_bytes = 0, height = 0;
  };
  Place from, to;
  std::size_t width_bytes = 0, height = 0, depth = 0;
};

enum Attribute : int { kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76 };
inline constexpr unsigned kStreamNonBlocking = 1, kEventDisableTiming = 2;
inline constexpr int kCaptureThreadLocal = 1;
inline constexpr unsigned kDeviceMemory = 2;  // CUmemorytype

// A function each, named as in cuda.h without its cu and version.
struct Driver {
  Status (*Init)(unsigned flags);
  Status (*GetErrorString)(Status status, const char** text);
  Status (*DeviceGetCount)(int* count);
  Status (*DeviceGet)(DeviceNumber* device, int ordinal);
  Status (*DeviceGetName)(char* name, int length, DeviceNumber device);
  Status (*DeviceGetAttribute)(int* value, int attribute, DeviceNumber device);
  Status (*DevicePrimaryCtxRetain)(Context* context, DeviceNumber device);
  Status (*DevicePrimaryCtxRelease)(DeviceNumber device);
  Status (*CtxPushCurrent)(Context context);
  Status (*CtxPopCurrent)(Context* context);
  Status (*MemAlloc)(Address* address, std::size_t bytes);
  Status (*MemFree)(Address address);
  Status (*MemHostAlloc)(void** memory, std::size_t bytes, unsigned flags);
  Status (*MemFreeHost)(void* memory);
  Status (*MemcpyHtoDAsync)(Address to, const void* from, std::size_t bytes, StreamHandle stream);
  Status (*MemcpyDtoHAsync)(void* to, Address from, std::size_t bytes, StreamHandle stream);
  Status (*MemcpyDtoDAsync)(Address to, Address from, std::size_t bytes, StreamHandle stream);
  Status (*Memcpy3DAsync)(const Copy3D* copy, StreamHandle stream);
  Status (*StreamCreate)(StreamHandle* stream, unsigned flags);
  Status (*StreamDestroy)(StreamHandle stream);
  Status (*StreamSynchronize)(StreamHandle stream);
  Status (*StreamWaitEvent)(StreamHandle stream, EventHandle event, unsigned flags);
  Status (*StreamBeginCapture)(StreamHandle stream, int mode);
  Status (*StreamEndCapture)(StreamHandle stream, GraphHandle* graph);
  Status (*EventCreate)(EventHandle* event, unsigned flags);
  Status (*EventRecord)(EventHandle event, StreamHandle stream);
  Status (*EventSynchronize)(EventHandle event);
  Status (*EventDestroy)(EventHandle event);
  Status (*GraphInstantiateWithFlags)(GraphExecHandle* exec, GraphHandle graph, unsigned long long flags);
  Status (*GraphLaunch)(GraphExecHandle exec, StreamHandle stream);
  Status (*GraphExecDestroy)(GraphExecHandle exec);
  Status (*GraphDestroy)(GraphHandle graph);
};

// The driver of this machine, initialised. Throws Unavailable, each time it is asked, where there is none, where it is
// older than CUDA 12, or where it finds no GPU.
const Driver& driver();

// In the driver's words.
std::string message(const Driver& driver, Status status);

// Throws RunError naming `what` unless the status is success.
void check(const Driver& driver, Status status, const char* what);

}  // namespace segmenter_trt::cuda
