#include "driver.h"

#include "driver_library.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt::cuda {
namespace {

constexpr char kLibrary[] = "libcuda.so.1";
constexpr int kVersion = 12000;  // of the functions asked for

template <class Function>
void bind(const DriverLibrary& library, const char* name, Function*& function) {
  if (library.find(name, kVersion, function)) return;
  throw Unavailable(std::string(kLibrary) + ": has no " + name + " of CUDA 12; update the NVIDIA driver");
}

Driver open() {
  const DriverLibrary library(kLibrary);
  if (!library.missing().empty()) {
    throw Unavailable(std::string("no NVIDIA driver here (") + kLibrary +
                      " not found); the plan is whole, run it on a machine with a GPU");
  }
  Driver found;
#define SEGMENTER_TRT_BIND(name) bind(library, "cu" #name, found.name)
  SEGMENTER_TRT_BIND(Init);
  SEGMENTER_TRT_BIND(GetErrorString);
  SEGMENTER_TRT_BIND(DeviceGetCount);
  SEGMENTER_TRT_BIND(DeviceGet);
  SEGMENTER_TRT_BIND(DeviceGetName);
  SEGMENTER_TRT_BIND(DeviceGetAttribute);
  SEGMENTER_TRT_BIND(DevicePrimaryCtxRetain);
  SEGMENTER_TRT_BIND(DevicePrimaryCtxRelease);
  SEGMENTER_TRT_BIND(CtxPushCurrent);
  SEGMENTER_TRT_BIND(CtxPopCurrent);
  SEGMENTER_TRT_BIND(MemAlloc);
  SEGMENTER_TRT_BIND(MemFree);
  SEGMENTER_TRT_BIND(MemHostAlloc);
  SEGMENTER_TRT_BIND(MemFreeHost);
  SEGMENTER_TRT_BIND(MemcpyHtoDAsync);
  SEGMENTER_TRT_BIND(MemcpyDtoHAsync);
  SEGMENTER_TRT_BIND(MemcpyDtoDAsync);
  SEGMENTER_TRT_BIND(Memcpy3DAsync);
  SEGMENTER_TRT_BIND(StreamCreate);
  SEGMENTER_TRT_BIND(StreamDestroy);
  SEGMENTER_TRT_BIND(StreamSynchronize);
  SEGMENTER_TRT_BIND(StreamWaitEvent);
  SEGMENTER_TRT_BIND(StreamBeginCapture);
  SEGMENTER_TRT_BIND(StreamEndCapture);
  SEGMENTER_TRT_BIND(EventCreate);
  SEGMENTER_TRT_BIND(EventRecord);
  SEGMENTER_TRT_BIND(EventSynchronize);
  SEGMENTER_TRT_BIND(EventDestroy);
  SEGMENTER_TRT_BIND(GraphInstantiateWithFlags);
  SEGMENTER_TRT_BIND(GraphLaunch);
  SEGMENTER_TRT_BIND(GraphExecDestroy);
  SEGMENTER_TRT_BIND(GraphDestroy);
#undef SEGMENTER_TRT_BIND
  if (const Status status = found.Init(0); status != 0) {
    throw Unavailable("the NVIDIA driver does not start: " + message(found, status));
  }
  int count = 0;
  if (found.DeviceGetCount(&count) != 0 || count < 1) {
    throw Unavailable("the NVIDIA driver finds no GPU here; the plan is whole, run it on a machine with one");
  }
  return found;
}

}  // namespace

const Driver& driver() {
  // an initialiser that throws is run again at the next call
  static const Driver found = open();
  return found;
}

std::string message(const Driver& driver, Status status) {
  const char* text = nullptr;
  if (driver.GetErrorString(status, &text) != 0 || text == nullptr) text = "unknown error";
  return std::string(text) + " (CUDA error " + std::to_string(status) + ")";
}

void check(const Driver& driver, Status status, const char* what) {
  if (status != 0) throw RunError(std::string(what) + ": " + message(driver, status));
}

}  // namespace segmenter_trt::cuda
