#include "launcher.h"

#include <bit>
#include <cstdint>
#include <limits>

#include "failure.h"

namespace segmenter_launch {
namespace {

// Until this driver, a map of a smaller tensor must not have this bit.
constexpr int kLastDriverWithoutSmallMaps = 13010;
constexpr std::uint64_t kSmallTensorBytes = std::uint64_t{128} * 1024, kLargeTensorBit = std::uint64_t{1} << 21;
constexpr std::int64_t kMaxGridX = std::numeric_limits<std::int32_t>::max(), kMaxGridY = 65535;

std::string capability_name(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

std::int32_t narrow(const Value& value, std::int64_t integer) {
  if (integer < 0 || integer > std::numeric_limits<std::int32_t>::max()) {
    throw Failure(std::string(value.name) + " = " + std::to_string(integer) +
                  ": does not fit 32 bits; use a smaller batch or windows");
  }
  return static_cast<std::int32_t>(integer);
}

TensorMap encode(const Driver& driver, int driver_version, const Box& box, Type type, const Value& value) {
  constexpr std::uint64_t kElementBytes = 2;
  TensorMap map{};
  std::array<std::uint64_t, kMaxRank> sides{}, stride_bytes{};  // fastest axis first, as the driver wants them
  std::array<std::uint32_t, kMaxRank> sizes{}, steps{};
  std::uint64_t last_byte = 0;
  for (std::uint32_t axis = 0; axis < box.rank; ++axis) {
    const std::uint32_t from = box.rank - 1 - axis;
    sides[axis] = static_cast<std::uint64_t>(value.shape[from]);
    sizes[axis] = box.sides[from];
    steps[axis] = 1;
    const std::uint64_t stride = static_cast<std::uint64_t>(value.strides[from]) * kElementBytes;
    if (axis > 0) stride_bytes[axis - 1] = stride;  // the first is that of an element
    last_byte += (sides[axis] - 1) * stride;
  }
  driver.check(driver.encode_tiled(&map, type == Type::fp16 ? kFloat16 : kBfloat16, box.rank,
                                   const_cast<void*>(value.pointer), sides.data(), stride_bytes.data(), sizes.data(),
                                   steps.data(), kNoInterleave, box.swizzle, kPromoteTo128Bytes, kFillZero),
               "cuTensorMapEncodeTiled", value.name);
  if (driver_version <= kLastDriverWithoutSmallMaps && last_byte + 1 < kSmallTensorBytes) {
    map.words[1] &= ~kLargeTensorBit;
  }
  return map;
}

}  // namespace

Launcher::Launcher(const Kernels& kernels, std::string library)
    : kernels_(kernels),
      library_(std::move(library)),
      slots_(kernels.images.size() * kMaxDevices),
      libraries_(kernels.images.size()) {}

void Launcher::require(const Call& call) const {
  std::visit(
      [&](const auto& each) {
        for (const Form& form : each.choose(kernels_.images).forms) each.launch(form);
      },
      call);
}

void Launcher::prepare(const Call& call) {
  std::visit([&](const auto& each) { loaded(each.choose(kernels_.images)); }, call);
}

void Launcher::launch(const Call& call, Stream stream) {
  const Image& image = *std::visit([&](const auto& each) { return &each.choose(kernels_.images); }, call);
  const auto& [form, kernel] = loaded(image);
  const Launch launch = std::visit([&form = *form](const auto& each) { return each.launch(form); }, call);
  if (launch.grid[0] == 0 || launch.grid[1] == 0) return;
  if (launch.grid[0] > kMaxGridX || launch.grid[1] > kMaxGridY) {
    throw Failure(std::string(image.name) + ": a grid of " + std::to_string(launch.grid[0]) + " x " +
                  std::to_string(launch.grid[1]) + " programs: use a smaller batch");
  }
  const Driver& driver = *ready_.load(std::memory_order_acquire);

  union Slot {
    const void* pointer;
    std::int64_t wide;
    std::int32_t narrow;
    float number;
  };
  std::array<Slot, kMaxParameters> slots;
  std::array<TensorMap, kMaxMaps> maps;
  std::array<void*, kMaxParameters> parameters;
  std::size_t count = 0, map_count = 0;
  for (const Parameter& parameter : form->parameters) {
    Slot& slot = slots[count];
    parameters[count++] = &slot;
    if (parameter.kind == Kind::scratch) {
      slot.pointer = nullptr;  // embed.py takes no kernel that needs any
      continue;
    }
    const Value* const value = launch.find(parameter.name);
    if (!value) {
      throw Failure(std::string(image.name) + ": no argument named " + std::string(parameter.name) +
                    "; this library is of another version than its kernels: build it anew");
    }
    bool aligned = true;
    switch (parameter.kind) {
      case Kind::pointer:
        slot.pointer = value->pointer;
        aligned = reinterpret_cast<std::uintptr_t>(value->pointer) % 16 == 0;
        break;
      case Kind::i32:
        slot.narrow = narrow(*value, value->integer);
        aligned = value->integer % 16 == 0;
        break;
      case Kind::fp32:
        slot.number = value->number;
        break;
      case Kind::map:
        aligned = reinterpret_cast<std::uintptr_t>(value->pointer) % 16 == 0;
        if (!aligned) break;
        maps[map_count] = encode(driver, driver_version_, *parameter.box, image.type, *value);
        parameters[count - 1] = &maps[map_count++];
        break;
      case Kind::shape:
        slot.narrow = narrow(*value, value->shape[parameter.axis]);
        break;
      case Kind::stride:
        slot.wide = value->strides[parameter.axis];
        break;
      case Kind::scratch:
        break;
    }
    if (!aligned && (parameter.aligned || parameter.kind == Kind::map)) {
      throw Failure(std::string(image.name) + ": " + std::string(parameter.name) + " is no multiple of 16");
    }
  }
  const LaunchConfig config = {static_cast<unsigned>(launch.grid[0]),
                               static_cast<unsigned>(launch.grid[1]),
                               1,
                               form->threads,
                               1,
                               1,
                               form->shared_bytes,
                               stream,
                               nullptr,
                               0};
  // the driver takes a kernel for a function: that of the current context
  driver.check(driver.launch(&config, reinterpret_cast<Function>(kernel), parameters.data(), nullptr),
               "cuLaunchKernelEx", image.name);
}

const Driver& Launcher::driver() {
  if (!driver_) {
    const Driver opened = Driver::open(library_);
    opened.check(opened.driver_version(&driver_version_), "cuDriverGetVersion");
    driver_ = opened;
    ready_.store(&*driver_, std::memory_order_release);
  }
  return *driver_;
}

const Launcher::Loaded& Launcher::loaded(const Image& image) {
  if (!ready_.load(std::memory_order_acquire)) {
    const std::scoped_lock lock(mutex_);
    driver();
  }
  const Driver& driver = *ready_.load(std::memory_order_acquire);
  Device device = 0;
  driver.check(driver.current_device(&device), "cuCtxGetDevice");
  if (device < 0 || static_cast<std::size_t>(device) >= kMaxDevices) {
    throw Failure("GPU number " + std::to_string(device) + ": wanted one below " + std::to_string(kMaxDevices));
  }
  const auto index = static_cast<std::size_t>(&image - kernels_.images.data());
  std::atomic<const Loaded*>& slot = slots_[index * kMaxDevices + static_cast<std::size_t>(device)];
  if (const Loaded* const found = slot.load(std::memory_order_acquire)) return *found;
  const std::scoped_lock lock(mutex_);
  if (const Loaded* const found = slot.load(std::memory_order_acquire)) return *found;  // while this thread waited
  const Loaded& made = storage_.emplace_back(load(image, device));
  slot.store(&made, std::memory_order_release);
  return made;
}

// The newest machine code that runs on a device as it is; the PTX of the newest older architecture for others.
const Form& Launcher::expected(const Image& image, int capability) const {
  const Form *code = nullptr, *ptx = nullptr;
  std::string known;
  for (const Form& form : image.forms) {
    const bool same_major = form.architecture / 10 == capability / 10;
    if (form.exact ? form.architecture == capability : same_major && form.architecture <= capability) code = &form;
    if (form.ptx && form.architecture <= capability) ptx = &form;
    known += (known.empty() ? "" : ", ") + capability_name(form.architecture);
    if (form.ptx) known += " and later";
  }
  if (code) return *code;
  if (ptx) return *ptx;
  throw Failure("GPU of compute capability " + capability_name(capability) + ": " + image.name + " was compiled for " +
                known + "; compile it with `python -m segmenter_kernels.aot` and build this library anew");
}

Launcher::Loaded Launcher::load(const Image& image, Device device) {
  const Driver& driver = this->driver();
  const std::string name = image.name;
  int major = 0, minor = 0;
  driver.check(driver.device_attribute(&major, kMajor, device), "cuDeviceGetAttribute");
  driver.check(driver.device_attribute(&minor, kMinor, device), "cuDeviceGetAttribute");
  const Form* form = &expected(image, 10 * major + minor);
  Library& library = libraries_[static_cast<std::size_t>(&image - kernels_.images.data())];
  if (!library) {
    driver.check(driver.load_library(&library, image.code, nullptr, nullptr, 0, nullptr, nullptr, 0),
                 "cuLibraryLoadData", name);
  }
  Kernel kernel = nullptr;
  driver.check(driver.get_kernel(&kernel, library, form->symbol), "cuLibraryGetKernel", name);
  Function function = nullptr;
  // loads the code now: while a CUDA graph is captured it might be too late
  driver.check(driver.get_function(&function, kernel), "cuKernelGetFunction", name);
  // tile sizes differ between architectures, so that what the driver took of the fatbin decides, not what was expected
  int architecture = 0;
  driver.check(driver.get_kernel_attribute(&architecture, kPtxVersion, kernel, device), "cuKernelGetAttribute", name);
  if (architecture != form->architecture) {
    const Form* other = nullptr;
    for (const Form& each : image.forms) {
      if (each.architecture == architecture && std::string_view(each.symbol) == form->symbol) other = &each;
    }
    if (!other) {
      throw Failure(name + ": the driver took code for " + capability_name(architecture) + " on a GPU of " +
                    capability_name(10 * major + minor) + ", wanted " + capability_name(form->architecture));
    }
    form = other;
  }
  if (driver.parameter_info) {
    std::size_t offset = 0, bytes = 0, index = 0;
    for (const Parameter& parameter : form->parameters) {
      driver.check(driver.parameter_info(kernel, index++, &offset, &bytes), "cuKernelGetParamInfo", name);
      if (bytes != parameter.bytes) {
        throw Failure(name + ": parameter " + std::string(parameter.name) + " of " + std::to_string(bytes) +
                      " bytes, described as " + std::to_string(parameter.bytes));
      }
    }
    if (driver.parameter_info(kernel, index, &offset, &bytes) == kSuccess) {
      throw Failure(name + ": more than the " + std::to_string(index) + " parameters that are described");
    }
  }
  driver.check(
      driver.set_kernel_attribute(kMaxDynamicSharedBytes, static_cast<int>(form->shared_bytes), kernel, device),
      "cuKernelSetAttribute", name + ", " + std::to_string(form->shared_bytes) + " bytes of shared memory");
  return {form, kernel};
}

}  // namespace segmenter_launch
