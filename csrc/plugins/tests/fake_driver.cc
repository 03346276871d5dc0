#include "fake_driver.h"

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>

using namespace segmenter_launch;

namespace {

constexpr int kInvalidValue = 1, kNotFound = 500, kNoBinary = 209;

struct Handle {  // of a kernel
  const void* image;
  std::string symbol;
  std::map<int, int> shared_limit;  // of each device
};

struct State {
  std::mutex mutex;
  std::map<const void*, std::vector<fake::Code>> images;
  std::vector<int> gpus{80};
  int version = 13020, taken = 0;
  std::map<std::string, int> faults, counts;
  std::set<std::string> hidden;
  std::map<std::size_t, int> sizes;
  std::vector<std::unique_ptr<Handle>> kernels;
  std::vector<fake::Launched> launched;
  std::vector<fake::Map> maps;
};

State& state() {
  static State all;
  return all;
}

thread_local int current = 0;
std::atomic<bool> quiet{false};

// The result of a function's fault, else of its body; counts and locks.
int run(const char* name, const std::function<int(State&)>& body) {
  State& all = state();
  const std::scoped_lock lock(all.mutex);
  ++all.counts[name];
  if (const auto fault = all.faults.find(name); fault != all.faults.end()) return fault->second;
  return body(all);
}

const fake::Code* code_of(State& all, const Handle& kernel, int device) {
  const int capability = all.gpus.at(static_cast<std::size_t>(device));
  const fake::Code *binary = nullptr, *ptx = nullptr;
  for (const fake::Code& code : all.images.at(kernel.image)) {
    if (code.symbol != kernel.symbol) continue;
    if (all.taken) {
      if (code.architecture == all.taken) binary = &code;
      continue;
    }
    const bool older = code.architecture / 10 == capability / 10 && code.architecture <= capability;
    if (code.exact ? code.architecture == capability : older) binary = &code;
    if (code.ptx && code.architecture <= capability) ptx = &code;
  }
  return binary ? binary : ptx;
}

Handle& handle(Kernel kernel) { return *reinterpret_cast<Handle*>(kernel); }

int init(unsigned) {
  return run("cuInit", [](State&) { return 0; });
}

int driver_version(int* version) {
  return run("cuDriverGetVersion", [&](State& all) { return *version = all.version, 0; });
}

int current_device(Device* device) {
  if (quiet) return *device = current, 0;
  return run("cuCtxGetDevice", [&](State&) { return *device = current, 0; });
}

int device_attribute(int* value, int attribute, Device device) {
  return run("cuDeviceGetAttribute", [&](State& all) {
    const int capability = all.gpus.at(static_cast<std::size_t>(device));
    *value = attribute == kMajor ? capability / 10 : capability % 10;
    return 0;
  });
}

int error_name(int error, const char** name) {
  *name = error == kInvalidValue ? "CUDA_ERROR_INVALID_VALUE" : nullptr;
  return *name ? 0 : kInvalidValue;
}

int load_library(Library* library, const void* code, const int*, void**, unsigned, const int*, void**, unsigned) {
  return run("cuLibraryLoadData", [&](State& all) {
    if (!all.images.contains(code)) return kInvalidValue;
    *library = reinterpret_cast<Library>(const_cast<void*>(code));
    return 0;
  });
}

int get_kernel(Kernel* kernel, Library library, const char* name) {
  return run("cuLibraryGetKernel", [&](State& all) {
    for (const fake::Code& code : all.images.at(library)) {
      if (code.symbol != name) continue;
      all.kernels.push_back(std::make_unique<Handle>(Handle{library, name, {}}));
      *kernel = reinterpret_cast<Kernel>(all.kernels.back().get());
      return 0;
    }
    return kNotFound;
  });
}

int get_function(Function* function, Kernel kernel) {
  return run("cuKernelGetFunction", [&](State& all) {
    *function = reinterpret_cast<Function>(kernel);
    return code_of(all, handle(kernel), current) ? 0 : kNoBinary;
  });
}

int get_kernel_attribute(int* value, int attribute, Kernel kernel, Device device) {
  return run("cuKernelGetAttribute", [&](State& all) {
    if (attribute != kPtxVersion) return kInvalidValue;
    *value = code_of(all, handle(kernel), device)->architecture;
    return 0;
  });
}

int set_kernel_attribute(int attribute, int value, Kernel kernel, Device device) {
  return run("cuKernelSetAttribute", [&](State&) {
    if (attribute != kMaxDynamicSharedBytes) return kInvalidValue;
    handle(kernel).shared_limit[device] = value;
    return 0;
  });
}

int parameter_info(Kernel kernel, std::size_t index, std::size_t* offset, std::size_t* bytes) {
  return run("cuKernelGetParamInfo", [&](State& all) {
    const auto& sizes = code_of(all, handle(kernel), current)->parameter_bytes;
    *offset = 0;
    if (const auto changed = all.sizes.find(index); changed != all.sizes.end()) {
      *bytes = static_cast<std::size_t>(changed->second);
      return 0;
    }
    if (index >= sizes.size()) return kInvalidValue;
    *bytes = sizes[index];
    return 0;
  });
}

int encode_tiled(TensorMap* map, int type, std::uint32_t rank, void* address, const std::uint64_t* sides,
                 const std::uint64_t* stride_bytes, const std::uint32_t* box, const std::uint32_t* steps,
                 int interleave, int swizzle, int promotion, int fill) {
  if (quiet) return 0;
  return run("cuTensorMapEncodeTiled", [&](State& all) {
    if (reinterpret_cast<std::uintptr_t>(map) % 64 != 0) return kInvalidValue;
    all.maps.push_back({type,
                        address,
                        {sides, sides + rank},
                        {stride_bytes, stride_bytes + rank - 1},
                        {box, box + rank},
                        {steps, steps + rank},
                        interleave,
                        swizzle,
                        promotion,
                        fill});
    map->words.fill(~std::uint64_t{0});
    map->words[0] = all.maps.size() - 1;
    return 0;
  });
}

int launch(const LaunchConfig* config, Function function, void** parameters, void** extra) {
  if (quiet) return 0;
  return run("cuLaunchKernelEx", [&](State& all) {
    Handle& kernel = handle(reinterpret_cast<Kernel>(function));
    const fake::Code* const code = code_of(all, kernel, current);
    if (!code || extra) return kInvalidValue;
    fake::Launched record{
        kernel.image, kernel.symbol, current, code->architecture, kernel.shared_limit[current], *config, {}};
    for (std::size_t index = 0; index < code->parameter_bytes.size(); ++index) {
      const auto* const bytes = static_cast<const std::byte*>(parameters[index]);
      record.parameters.emplace_back(bytes, bytes + code->parameter_bytes[index]);
    }
    all.launched.push_back(std::move(record));
    return 0;
  });
}

}  // namespace

namespace fake {

void reset() {
  State& all = state();
  const std::scoped_lock lock(all.mutex);
  all.gpus = {80};
  all.version = 13020;
  all.taken = 0;
  all.faults.clear();
  all.counts.clear();
  all.hidden.clear();
  all.sizes.clear();
  all.launched.clear();
  all.maps.clear();
  current = 0;
}

void add_image(const void* address, std::vector<Code> codes) { state().images[address] = std::move(codes); }
void set_gpus(std::vector<int> capabilities) { state().gpus = std::move(capabilities); }
void use_gpu(int device) { current = device; }
void set_version(int version) { state().version = version; }
void fail(const std::string& function, int result) {
  if (result) {
    state().faults[function] = result;
  } else {
    state().faults.erase(function);
  }
}
void hide(const std::string& function) { state().hidden.insert(function); }
void take(int architecture) { state().taken = architecture; }
void resize(std::size_t index, int bytes) { state().sizes[index] = bytes; }

void be_quiet(bool wanted) { quiet = wanted; }

std::vector<Launched> launched() {
  const std::scoped_lock lock(state().mutex);
  return state().launched;
}

Map map(const std::vector<std::byte>& parameter) {
  std::uint64_t index = 0;
  std::memcpy(&index, parameter.data(), sizeof index);
  const std::scoped_lock lock(state().mutex);
  return state().maps.at(index);
}

int calls(const std::string& function) {
  const std::scoped_lock lock(state().mutex);
  return state().counts[function];
}

}  // namespace fake

extern "C" __attribute__((visibility("default"))) int cuGetProcAddress_v2(const char* name, void** found, int version,
                                                                          std::uint64_t flags, int*) {
  static const std::map<std::string, std::pair<void*, int>> all = {
      {"cuInit", {reinterpret_cast<void*>(init), 2000}},
      {"cuDriverGetVersion", {reinterpret_cast<void*>(driver_version), 2020}},
      {"cuCtxGetDevice", {reinterpret_cast<void*>(current_device), 2000}},
      {"cuDeviceGetAttribute", {reinterpret_cast<void*>(device_attribute), 2000}},
      {"cuGetErrorName", {reinterpret_cast<void*>(error_name), 6000}},
      {"cuLibraryLoadData", {reinterpret_cast<void*>(load_library), 12000}},
      {"cuLibraryGetKernel", {reinterpret_cast<void*>(get_kernel), 12000}},
      {"cuKernelGetFunction", {reinterpret_cast<void*>(get_function), 12000}},
      {"cuKernelGetAttribute", {reinterpret_cast<void*>(get_kernel_attribute), 12000}},
      {"cuKernelSetAttribute", {reinterpret_cast<void*>(set_kernel_attribute), 12000}},
      {"cuKernelGetParamInfo", {reinterpret_cast<void*>(parameter_info), 12040}},
      {"cuTensorMapEncodeTiled", {reinterpret_cast<void*>(encode_tiled), 12000}},
      {"cuLaunchKernelEx", {reinterpret_cast<void*>(launch), 11060}},
  };
  const auto entry = all.find(name);
  const bool known = entry != all.end() && !state().hidden.contains(name);
  if (!known || flags != 0 || version < entry->second.second) return kNotFound;
  *found = entry->second.first;
  return 0;
}
