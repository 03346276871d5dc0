#include "driver.h"

#include <dlfcn.h>

#include "failure.h"

namespace segmenter_plugins {
namespace {

using Find = Result (*)(const char* name, void** function, int version, std::uint64_t flags, int* status);

constexpr int kVersion = 12000, kParameterInfoVersion = 12040;  // of CUDA, the first with what is asked for

// A plain dlsym of these names would get the versions of CUDA's first years.
template <class Pointer>
bool find(Find finder, const char* name, int version, Pointer& function) {
  void* found = nullptr;
  if (finder(name, &found, version, 0, nullptr) != kSuccess || !found) return false;
  function = reinterpret_cast<Pointer>(found);
  return true;
}

}  // namespace

Driver Driver::open(const std::string& library) {
  // never closed: kernels stay loaded as long as the process
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* const reason = dlerror();
    throw Failure("no CUDA driver: " + std::string(reason ? reason : library) + "; install NVIDIA's driver");
  }
  const auto finder = reinterpret_cast<Find>(dlsym(handle, "cuGetProcAddress_v2"));
  Driver driver{};
  const bool complete = finder && find(finder, "cuInit", kVersion, driver.init) &&
                        find(finder, "cuDriverGetVersion", kVersion, driver.driver_version) &&
                        find(finder, "cuCtxGetDevice", kVersion, driver.current_device) &&
                        find(finder, "cuDeviceGetAttribute", kVersion, driver.device_attribute) &&
                        find(finder, "cuGetErrorName", kVersion, driver.error_name) &&
                        find(finder, "cuLibraryLoadData", kVersion, driver.load_library) &&
                        find(finder, "cuLibraryGetKernel", kVersion, driver.get_kernel) &&
                        find(finder, "cuKernelGetFunction", kVersion, driver.get_function) &&
                        find(finder, "cuKernelGetAttribute", kVersion, driver.get_kernel_attribute) &&
                        find(finder, "cuKernelSetAttribute", kVersion, driver.set_kernel_attribute) &&
                        find(finder, "cuTensorMapEncodeTiled", kVersion, driver.encode_tiled) &&
                        find(finder, "cuLaunchKernelEx", kVersion, driver.launch);
  if (!complete) throw Failure(library + ": this CUDA driver is older than 12.0; install NVIDIA's driver 525 or newer");
  find(finder, "cuKernelGetParamInfo", kParameterInfoVersion, driver.parameter_info);
  driver.check(driver.init(0), "cuInit");
  return driver;
}

void Driver::check(Result result, const char* function, std::string_view subject) const {
  if (result == kSuccess) return;
  const char* name = nullptr;
  if (error_name(result, &name) != kSuccess || !name) name = "an error unknown to this driver";
  throw Failure((subject.empty() ? "" : std::string(subject) + ": ") + function + ": " + name + " (" +
                std::to_string(result) + ")");
}

}  // namespace segmenter_plugins
