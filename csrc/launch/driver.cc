#include "driver.h"

#include "driver_library.h"
#include "failure.h"

namespace segmenter_launch {
namespace {

constexpr int kVersion = 12000, kParameterInfoVersion = 12040;  // of CUDA, the first with what is asked for

}  // namespace

Driver Driver::open(const std::string& library) {
  const segmenter_trt::cuda::DriverLibrary found(library);
  if (!found.missing().empty()) throw Failure("no CUDA driver: " + found.missing() + "; install NVIDIA's driver");
  Driver driver{};
  const bool complete = found.find("cuInit", kVersion, driver.init) &&
                        found.find("cuDriverGetVersion", kVersion, driver.driver_version) &&
                        found.find("cuCtxGetDevice", kVersion, driver.current_device) &&
                        found.find("cuDeviceGetAttribute", kVersion, driver.device_attribute) &&
                        found.find("cuGetErrorName", kVersion, driver.error_name) &&
                        found.find("cuLibraryLoadData", kVersion, driver.load_library) &&
                        found.find("cuLibraryGetKernel", kVersion, driver.get_kernel) &&
                        found.find("cuKernelGetFunction", kVersion, driver.get_function) &&
                        found.find("cuKernelGetAttribute", kVersion, driver.get_kernel_attribute) &&
                        found.find("cuKernelSetAttribute", kVersion, driver.set_kernel_attribute) &&
                        found.find("cuTensorMapEncodeTiled", kVersion, driver.encode_tiled) &&
                        found.find("cuLaunchKernelEx", kVersion, driver.launch);
  if (!complete) throw Failure(library + ": this CUDA driver is older than 12.0; install NVIDIA's driver 525 or newer");
  found.find("cuKernelGetParamInfo", kParameterInfoVersion, driver.parameter_info);
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

}  // namespace segmenter_launch
