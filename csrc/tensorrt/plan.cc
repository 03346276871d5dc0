#include "plan.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "checks.h"
#include "dims.h"
#include "environment.h"
#include "failure.h"
#include "plan_checks.h"
#include "rebuild.h"
#include "runner.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt::tensorrt {
namespace {

namespace fs = std::filesystem;

constexpr char kPluginVariable[] = "SEGMENTER_TRT_PLUGINS";
constexpr char kPluginFile[] = "libsegmenter_trt_plugin.so";

cuda::DeviceNumber device_numbered(const cuda::Driver& driver, int ordinal) {
  int count = 0;
  cuda::check(driver, driver.DeviceGetCount(&count), "GPUs");
  if (ordinal < 0 || ordinal >= count) {
    throw InputError("device " + std::to_string(ordinal) + ": this machine has " + std::to_string(count) +
                     " GPU(s), numbered from 0");
  }
  cuda::DeviceNumber device = 0;
  cuda::check(driver, driver.DeviceGet(&device, ordinal), "GPU");
  return device;
}

std::string name_of(const cuda::Driver& driver, cuda::DeviceNumber device) {
  char name[256] = {};
  cuda::check(driver, driver.DeviceGetName(name, sizeof name - 1, device), "GPU's name");
  return name;
}

std::pair<int, int> capability_of(const cuda::Driver& driver, cuda::DeviceNumber device) {
  int major = 0, minor = 0;
  cuda::check(driver, driver.DeviceGetAttribute(&major, cuda::kComputeCapabilityMajor, device), "compute capability");
  cuda::check(driver, driver.DeviceGetAttribute(&minor, cuda::kComputeCapabilityMinor, device), "compute capability");
  return {major, minor};
}

// "8.0+" and "9.0", as manifests have them; false for what is neither.
bool holds(const std::string& wanted, std::pair<int, int> capability) {
  const bool later = wanted.ends_with('+');
  std::string_view digits(wanted.data(), wanted.size() - later);
  const auto dot = digits.find('.');
  if (dot == std::string_view::npos) return false;
  const std::pair<int, int> asked = {std::atoi(std::string(digits.substr(0, dot)).c_str()),
                                     std::atoi(std::string(digits.substr(dot + 1)).c_str())};
  return later ? capability >= asked : capability == asked;
}

std::size_t bytes_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
    case nvinfer1::DataType::kINT32:
      return 4;
    case nvinfer1::DataType::kUINT8:
      return 1;
    default:
      return 0;
  }
}

// The type a tensor of our plans has; the manifest settles what the images are, and how wide its labels.
bool fits(const Tensor& tensor, Input input, std::int64_t K) {
  if (tensor.name == kImages) {
    return tensor.input &&
           tensor.type == (input == Input::pixels ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT);
  }
  if (tensor.input) return false;
  if (tensor.name == kLabels)
    return tensor.type == (K <= kMostByteClasses ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kINT32);
  return tensor.type == nvinfer1::DataType::kFLOAT;
}

// Absolute: a loader looks for a name alone in the system's folders, and not here, where it is checked.
fs::path plugin_library(const EngineOptions& options) {
  std::error_code ignored;
  const fs::path named = options.plugins.empty() ? fs::path(environment(kPluginVariable)) : options.plugins;
  if (!named.empty()) return fs::absolute(named, ignored);
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&plugin_library), &info) != 0 && info.dli_fname != nullptr) {
    fs::path beside = fs::absolute(info.dli_fname, ignored).parent_path() / kPluginFile;
    if (fs::exists(beside, ignored)) return beside;
  }
  return {};
}

std::string text(const Range& range) {
  return range.fixed() ? std::to_string(range.min) : std::to_string(range.min) + " to " + std::to_string(range.max);
}

std::string where(const std::string& left) { return left.empty() ? "the GPU" : "the CPU: " + left; }

}  // namespace

segmenter_launch::Launcher& launcher_of_process() {
  // never destroyed: the driver may be gone before it
  static auto* const launcher = new segmenter_launch::Launcher;
  return *launcher;
}

Plan::Plan(const BackendRequest& request, segmenter_launch::Launcher& launcher)
    : driver_(cuda::driver()),
      device_(device_numbered(driver_, request.options.device)),
      device_name_(name_of(driver_, device_)),
      context_(driver_, device_),
      library_(request.options.runtime),
      input_(request.manifest.input),
      preprocess_(affine(request.manifest.preprocess)),
      launcher_(launcher) {
  const std::string artifact = request.artifact.string();
  require_device(request.manifest, artifact);
  require_version(request.manifest, artifact, request.bytes, kEngine, library_.version());
  const cuda::Current current(driver_, context_);
  try {
    runtime_ = library_.make_runtime(log_);
    load_plugins(request);
    engine_.reset(runtime_->deserializeCudaEngine(request.bytes.data(), request.bytes.size()));
    if (engine_ == nullptr) throw ArtifactError(artifact + ": " + kEngine + " cannot load it: " + log_.take());
    read_tensors(request.manifest, artifact);
    require_profile(request.manifest, artifact);
    load_kernels(request.manifest.K());
  } catch (...) {
    // here, for members go after `current`
    release();
    throw;
  }
}

Plan::~Plan() {
  const bool pushed = driver_.CtxPushCurrent(context_.get()) == 0;
  release();
  if (cuda::Context popped = nullptr; pushed) driver_.CtxPopCurrent(&popped);
}

void Plan::release() noexcept {
  workspace_.memory = {};
  workspace_.last = {};
#ifdef SEGMENTER_TRT_RTX
  for (auto& config : configs_) config.reset();
  cache_.reset();
#endif
  engine_.reset();
  runtime_.reset();
}

void Plan::require_device(const Manifest& manifest, const std::string& artifact) {
  const auto& wanted = manifest.compute_capabilities;
  const auto capability = capability_of(driver_, device_);
  if (wanted.empty()) return;  // of any
  if (std::any_of(wanted.begin(), wanted.end(), [&](const std::string& one) { return holds(one, capability); })) return;
  const std::string here = std::to_string(capability.first) + "." + std::to_string(capability.second);
  // a pipeline would make the same again
  const bool built = manifest.command.starts_with("segmenter build ");
  const std::string advice = built ? rebuild_advice(manifest, artifact) + "," : "build its graph: `segmenter build`";
  throw Unavailable(artifact + ": built for GPUs of compute capability " + joined(wanted) + ", " + device_name_ +
                    " has " + here + "; run it on one of those, or " + advice + " with --gpus " + here +
                    ", or --engine tensorrt where TensorRT-RTX does not know such GPUs");
}

void Plan::load_plugins(const BackendRequest& request) {
  const Manifest& manifest = request.manifest;
  if (manifest.plugins.empty()) return;
  const fs::path library = plugin_library(request.options);
  const std::string wanted = "plugins " + joined(manifest.plugins);
  require_plugin_library(manifest, request.artifact.string(), library);
  nvinfer1::IPluginRegistry& registry = runtime_->getPluginRegistry();
  if (registry.loadLibrary(library.c_str()) == nullptr) {
    throw Unavailable(wanted + ": " + kEngine + " cannot load " + library.string() + ": " + log_.take());
  }
  for (const std::string& name : manifest.plugins) {
    if (registry.getCreator(name.c_str(), "1", "segmenter") == nullptr) {
      throw Unavailable(library.string() + ": has no plugin " + name +
                        "; build the library of this version of segmenter_trt");
    }
  }
}

void Plan::read_tensors(const Manifest& manifest, const std::string& artifact) {
  const auto refuse = [&](const std::string& what) {
    throw ArtifactError(artifact + ": " + what + ", which its manifest does not say; build it again");
  };
  for (std::int32_t index = 0; index < engine_->getNbIOTensors(); ++index) {
    const char* const name = engine_->getIOTensorName(index);
    const nvinfer1::DataType type = engine_->getTensorDataType(name);
    const Tensor tensor = {name, type, bytes_of(type),
                           engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT};
    if (!fits(tensor, input_, manifest.K())) refuse("tensor " + tensor.name + " has a type or direction");
    if (!tensor.input && !manifest.gives(tensor.name)) refuse("output " + tensor.name);
    tensors_.push_back(tensor);
  }
  const auto given = [&](const std::string& name) { return gives(name.c_str()); };
  const auto missing = std::find_if_not(manifest.outputs.begin(), manifest.outputs.end(), given);
  if (missing != manifest.outputs.end()) {
    throw ArtifactError(artifact + ": has no output " + *missing + "; build it again");
  }
  if (std::none_of(tensors_.begin(), tensors_.end(), [](const Tensor& one) { return one.input; })) {
    throw ArtifactError(artifact + ": takes no images; build it again");
  }
}

// Sizes and batches that the manifest promises are told from the profile here, not by the first picture.
void Plan::require_profile(const Manifest& manifest, const std::string& artifact) const {
  nvinfer1::Dims least = engine_->getProfileShape(kImages, 0, nvinfer1::OptProfileSelector::kMIN);
  nvinfer1::Dims most = engine_->getProfileShape(kImages, 0, nvinfer1::OptProfileSelector::kMAX);
  if (least.nbDims != 4 || most.nbDims != 4) least = most = engine_->getTensorShape(kImages);  // of one shape
  if (least.nbDims != 4) throw ArtifactError(artifact + ": tells no shape of its images; build it again");
  const int height = input_ == Input::pixels ? 1 : 2;
  const auto require = [&](const char* what, const Range& said, int axis) {
    const Range taken = {least.d[axis], least.d[axis], most.d[axis]};
    if (taken.holds(said.min) && taken.holds(said.max)) return;
    throw ArtifactError(artifact + ": its manifest says " + what + " " + text(said) + ", its profile takes " +
                        text(taken) + "; " + rebuild_advice(manifest, artifact));
  };
  require("batch", manifest.batch, 0);
  require("height", manifest.height, height);
  require("width", manifest.width, height + 1);
}

// Now, so that no capture meets them first.
void Plan::load_kernels(std::int64_t K) {
  using namespace segmenter_launch;
  const auto left = [&](const Call& call) -> std::string {
    try {
      launcher_.prepare(call);
      return {};
    } catch (const Failure& failure) {
      return failure.what();
    }
  };
  MergeWindowsCall merge{};
  merge.K = K;
  windows_left_ = gives(kMasks) ? left(merge) : "this plan gives no masks";
  resizing_left_ = left(ResizeCall{});
  if (input_ == Input::pixels) return;
  const std::string normalizing_left = left(NormalizeCall{});
  if (windows_left_.empty()) windows_left_ = normalizing_left;
  if (resizing_left_.empty()) resizing_left_ = normalizing_left;
}

bool Plan::gives(const char* output) const noexcept {
  return std::any_of(tensors_.begin(), tensors_.end(),
                     [&](const Tensor& one) { return !one.input && one.name == output; });
}

Description Plan::describe() const {
  Description facts{};
  facts.engine = kEngine;
  facts.runtime = std::string(kEngine) + " " + library_.version();
  facts.device = device_name_;
  facts.windows_by = where(windows_left_);
  facts.resized_by = where(resizing_left_);
  return facts;
}

#ifdef SEGMENTER_TRT_RTX
nvinfer1::IRuntimeConfig* Plan::config(bool fixed_kernels) const {
  using Kernels = nvinfer1::DynamicShapesKernelSpecializationStrategy;
  std::unique_ptr<nvinfer1::IRuntimeConfig>& made = configs_[fixed_kernels ? 1 : 0];
  if (made != nullptr) return made.get();
  made.reset(engine_->createRuntimeConfig());
  if (made == nullptr) return nullptr;
  made->setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
  // lazily, kernels compiled meanwhile replace the first ones of a shape, and a graph would never see them
  made->setDynamicShapesKernelSpecializationStrategy(fixed_kernels ? Kernels::kEAGER : Kernels::kLAZY);
  if (cache_ == nullptr) cache_.reset(made->createRuntimeCache());
  // without it kernels are compiled once more for each context, which is slow and no failure
  if (cache_ != nullptr) made->setRuntimeCache(*cache_);
  return made.get();
}
#endif

std::unique_ptr<nvinfer1::IExecutionContext> Plan::make_context([[maybe_unused]] bool fixed_kernels) const {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<nvinfer1::IExecutionContext> made;
#ifdef SEGMENTER_TRT_RTX
  nvinfer1::IRuntimeConfig* const chosen = config(fixed_kernels);
  if (chosen != nullptr) made.reset(engine_->createExecutionContext(chosen));
#else
  made.reset(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
#endif
  if (made == nullptr) throw RunError(std::string(kEngine) + ": no execution context: " + log_.take());
  return made;
}

SharedWorkspace& Plan::shared_workspace() const {
  const std::lock_guard lock(mutex_);
  if (!workspace_.last) {
    workspace_.memory = make_scratch();
    workspace_.last = cuda::event(driver_);
  }
  return workspace_;
}

cuda::DeviceMemory Plan::make_scratch() const {
  // TensorRT takes no empty memory
  return cuda::device_memory(driver_, static_cast<std::size_t>(std::max<std::int64_t>(scratch_bytes(), 1)));
}

std::unique_ptr<Runner> Plan::make_runner(const SessionOptions& options) const {
  return std::make_unique<PlanRunner>(*this, options);
}

}  // namespace segmenter_trt::tensorrt
