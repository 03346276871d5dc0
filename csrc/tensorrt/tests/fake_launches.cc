// Kernels of the fake driver: fatbins that tests describe, and launches that do what tests say they do.
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fake_cuda.h"
#include "fake_state.h"

namespace {

using fake_cuda::kInvalidContext;
using fake_cuda::kInvalidValue;

constexpr int kNoBinary = 209, kNotFound = 500, kMissing = -1;
constexpr int kPtxVersion = 5;

struct Code {
  int architecture;
  std::vector<std::size_t> bytes;
  FakeCompute compute;
  const void* form;
};

struct Kernel {
  std::string symbol;
  std::vector<Code> codes;
};

// As CUlaunchConfig.
struct Config {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

std::map<const void*, std::vector<Kernel>> images;  // of each fatbin
std::map<std::size_t, std::size_t> told;            // sizes of parameters

// The newest code that a GPU runs.
const Code* code_of(const Kernel& kernel, int device) {
  const Code* best = nullptr;
  for (const Code& code : kernel.codes) {
    const bool runs = device >= 0 && code.architecture <= fake_cuda::capability(device);
    if (runs && (best == nullptr || code.architecture > best->architecture)) best = &code;
  }
  return best;
}

int CtxGetDevice(int* device) {
  GUARD("CtxGetDevice");
  *device = fake_cuda::device();
  return *device == kMissing ? kInvalidContext : 0;
}
int DriverGetVersion(int* version) {
  GUARD("DriverGetVersion");
  *version = 13020;
  return 0;
}
int GetErrorName(int, const char** name) {
  *name = "A_FAKE_ERROR";
  return 0;
}
int LibraryLoadData(void** library, const void* code, const int*, void**, unsigned, const int*, void**, unsigned) {
  GUARD("LibraryLoadData");
  const auto found = images.find(code);
  if (found == images.end()) return kInvalidValue;
  *library = &found->second;
  return 0;
}
int LibraryGetKernel(void** kernel, void* library, const char* name) {
  GUARD("LibraryGetKernel");
  for (Kernel& each : *static_cast<std::vector<Kernel>*>(library)) {
    if (each.symbol == name) return *kernel = &each, 0;
  }
  return kNotFound;
}
int KernelGetFunction(void** function, void* kernel) {
  GUARD("KernelGetFunction");
  *function = kernel;
  return code_of(*static_cast<Kernel*>(kernel), fake_cuda::device()) != nullptr ? 0 : kNoBinary;
}
int KernelGetAttribute(int* value, int attribute, void* kernel, int device) {
  GUARD("KernelGetAttribute");
  if (attribute != kPtxVersion) return kInvalidValue;
  *value = code_of(*static_cast<Kernel*>(kernel), device)->architecture;
  return 0;
}
int KernelSetAttribute(int, int, void*, int) {
  GUARD("KernelSetAttribute");
  return 0;
}
int KernelGetParamInfo(void* kernel, std::size_t index, std::size_t* offset, std::size_t* bytes) {
  GUARD("KernelGetParamInfo");
  const std::vector<std::size_t>& sizes = code_of(*static_cast<Kernel*>(kernel), fake_cuda::device())->bytes;
  if (told.count(index) == 0 && index >= sizes.size()) return kInvalidValue;
  *offset = 0;
  *bytes = told.count(index) != 0 ? told[index] : sizes[index];
  return 0;
}
int TensorMapEncodeTiled() { return kInvalidValue; }
int LaunchKernelEx(const Config* config, void* kernel, void** parameters, void** extra) {
  GUARD("LaunchKernelEx");
  const Code* const code = code_of(*static_cast<Kernel*>(kernel), fake_cuda::device());
  if (code == nullptr || extra != nullptr || config->grid[1] != 1 || config->grid[2] != 1) return kInvalidValue;
  std::vector<std::vector<std::byte>> values;
  for (std::size_t index = 0; index < code->bytes.size(); ++index) {
    const auto* const bytes = static_cast<const std::byte*>(parameters[index]);
    values.emplace_back(bytes, bytes + code->bytes[index]);
  }
  const unsigned programs = config->grid[0], threads = config->block[0];
  return fake_cuda::submit(config->stream, [=] {
    std::vector<const void*> places;
    for (const std::vector<std::byte>& value : values) places.push_back(value.data());
    code->compute(code->form, programs, threads, places.data());
  });
}

}  // namespace

namespace fake_cuda {

const Functions& launching() {
  static const Functions found = {NAMED(CtxGetDevice),         NAMED(DriverGetVersion),   NAMED(GetErrorName),
                                  NAMED(LibraryLoadData),      NAMED(LibraryGetKernel),   NAMED(KernelGetFunction),
                                  NAMED(KernelGetAttribute),   NAMED(KernelSetAttribute), NAMED(KernelGetParamInfo),
                                  NAMED(TensorMapEncodeTiled), NAMED(LaunchKernelEx)};
  return found;
}

}  // namespace fake_cuda

EXPORTED void fake_cuda_add_kernel(const void* code, const char* symbol, int architecture, const std::size_t* bytes,
                                   std::size_t count, FakeCompute compute, const void* form) {
  const std::lock_guard lock(fake_cuda::mutex);
  std::vector<Kernel>& kernels = images[code];
  for (Kernel& kernel : kernels) {
    if (kernel.symbol != symbol) continue;
    kernel.codes.push_back({architecture, {bytes, bytes + count}, compute, form});
    return;
  }
  kernels.push_back({symbol, {{architecture, {bytes, bytes + count}, compute, form}}});
}

EXPORTED void fake_cuda_tell_parameter(std::size_t index, std::size_t bytes) {
  const std::lock_guard lock(fake_cuda::mutex);
  if (bytes == 0) {
    told.erase(index);
  } else {
    told[index] = bytes;
  }
}
