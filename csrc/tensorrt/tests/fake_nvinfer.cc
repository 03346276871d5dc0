// A TensorRT that runs plans of a few words, as libnvinfer: fake_network.h says which.
//
// Work is put on the stream of the fake driver, with the addresses bound at that moment, as TensorRT's is. What
// TensorRT leaves undefined goes wrong here: a graph whose context was changed since makes no labels, and an enqueue is
// not captured before the context has run the shape. There is one logger, that of the first runtime, while any runtime
// lives.
//
// As TensorRT-RTX it compiles kernels for each shape. A graph of a context that compiles them lazily makes no labels,
// for it was captured with others; a plan with the word `uncapturable` says so, and fails where it is captured.
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "fake_cuda.h"
#include "fake_interfaces.h"
#include "fake_kernels.h"
#include "fake_network.h"

namespace {

using fake_network::Facts;
using fake_network::Job;
using nvinfer1::DataType;
using nvinfer1::Dims;

#ifdef SEGMENTER_TRT_RTX
std::mutex kernels_mutex;  // of the next, and of every cache
FakeKernels kernels{};

using Strategy = nvinfer1::DynamicShapesKernelSpecializationStrategy;
using Allocation = nvinfer1::ExecutionContextAllocationStrategy;

struct Cache final : nvinfer1::IRuntimeCache {
  mutable std::set<std::vector<std::int64_t>> shapes;
};

class Config final : public nvinfer1::StubConfig {
 public:
  void setExecutionContextAllocationStrategy(Allocation given) noexcept override { allocation = given; }
  nvinfer1::IRuntimeCache* createRuntimeCache() const noexcept override { return new Cache; }
  bool setRuntimeCache(nvinfer1::IRuntimeCache const& given) noexcept override {
    cache = static_cast<const Cache*>(&given);
    return true;
  }
  void setDynamicShapesKernelSpecializationStrategy(Strategy given) noexcept override { strategy = given; }

  void compile(const std::vector<std::int64_t>& shape) const {
    const std::lock_guard lock(kernels_mutex);
    if (cache == nullptr || cache->shapes.insert(shape).second) ++kernels.compiled;
  }

  Allocation allocation = Allocation::kSTATIC;
  Strategy strategy = Strategy::kLAZY;
  const Cache* cache = nullptr;
};
#endif

nvinfer1::ILogger* logger = nullptr;
int runtimes = 0;

void complain(const char* text) { logger->log(nvinfer1::ILogger::Severity::kERROR, text); }

template <class Function>
Function* of_driver(const char* name) {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  return library == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(library, name));
}

// What these objects hold on the device belongs to a context of CUDA's, which must be current when they go.
void require_current() {
  if (of_driver<decltype(fake_cuda_counts)>("fake_cuda_counts")().pushed < 1) std::abort();
}

class Context final : public nvinfer1::StubContext {
 public:
#ifdef SEGMENTER_TRT_RTX
  Context(const Facts& facts, const Config& config)
      : facts_(facts), memory_(config.allocation != Allocation::kUSER_MANAGED), config_(&config) {
    const std::lock_guard lock(kernels_mutex);
    ++(lazy() ? kernels.lazy : kernels.fixed);
  }
  bool isStreamCapturable(cudaStream_t) const noexcept override { return !facts_.uncapturable; }
#else
  Context(const Facts& facts, bool own_memory) : facts_(facts), memory_(own_memory) {}
#endif
  ~Context() override {
    ++*changes_;
    require_current();
  }

  bool setInputShape(char const*, Dims const& dims) noexcept override {
    const std::int64_t B = dims.d[0], H = dims.d[facts_.normalized ? 2 : 1], W = dims.d[facts_.normalized ? 3 : 2];
    if (B > facts_.B || H > facts_.H || W > facts_.W) {
      complain("outside the profile");
      return false;
    }
    B_ = B, H_ = H, W_ = W;
    ++*changes_;
    prepared_ = false;
#ifdef SEGMENTER_TRT_RTX
    config_->compile({B, H, W});
#endif
    return true;
  }
  Dims getTensorShape(char const* name) const noexcept override {
    if (name == std::string("labels")) return Dims{3, {B_, facts_.short_labels ? H_ - 1 : H_, W_}};
    if (name == std::string("masks"))
      return Dims{4, {B_, facts_.K, (H_ + facts_.P - 1) / facts_.P, (W_ + facts_.P - 1) / facts_.P}};
    return facts_.images(B_, H_, W_);
  }
  bool setTensorAddress(char const* name, void* data) noexcept override {
    if (bound_[name] != data) ++*changes_;
    bound_[name] = data;
    return reinterpret_cast<std::uintptr_t>(data) % 256 == 0;
  }
  void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
    memory_ = size > 0 && fake_on_device_(memory, static_cast<std::size_t>(size)) != 0;
    scratch_ = memory;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (!memory_) {
      complain("no scratch memory");
      return false;
    }
    if (!prepared_ && capturing_(stream) != 0) {
      complain("captured before it was prepared");
      return false;
    }
    if (facts_.uncapturable && capturing_(stream) != 0) {
      complain("captured though it had said that it cannot be");
      return false;
    }
    prepared_ = true;
    const bool captured = capturing_(stream) != 0;
    const std::shared_ptr<const Job> job(new Job{facts_, B_, H_, W_, bound_["images"], bound_["labels"],
                                                 bound_["masks"], scratch_, captured, changes_, *changes_, lazy()});
    const std::size_t pixels = static_cast<std::size_t>(B_ * H_ * W_);
    if (fake_on_device_(job->images, pixels * (facts_.normalized ? 12 : 3)) == 0 ||
        (job->labels != nullptr && fake_on_device_(job->labels, pixels * (facts_.wide ? 4 : 1)) == 0)) {
      complain("an address that is not the device's");
      return false;
    }
    if (put<fake_network::begin>(stream, job) && put<fake_network::compute>(stream, job)) return true;
    complain("the stream\nrefused");
    return false;
  }

 private:
  template <void (*layer)(const Job&)>
  bool put(cudaStream_t stream, const std::shared_ptr<const Job>& job) const {
    using Held = std::shared_ptr<const Job>;
    const auto work = [](void* data) { layer(**static_cast<Held*>(data)); };
    const auto drop = [](void* data) { delete static_cast<Held*>(data); };
    return submit_(stream, work, new Held(job), drop) == 0;
  }

#ifdef SEGMENTER_TRT_RTX
  bool lazy() const { return config_->strategy == Strategy::kLAZY; }

  const Facts facts_;
  bool memory_;
  const Config* config_;
#else
  static bool lazy() { return false; }

  const Facts facts_;
  bool memory_;
#endif
  bool prepared_ = false;
  const std::shared_ptr<int> changes_ = std::make_shared<int>(0);
  std::int64_t B_ = 0, H_ = 0, W_ = 0;
  void* scratch_ = nullptr;
  std::map<std::string, void*> bound_;
  decltype(&fake_cuda_on_device) fake_on_device_ = of_driver<decltype(fake_cuda_on_device)>("fake_cuda_on_device");
  decltype(&fake_cuda_capturing) capturing_ = of_driver<decltype(fake_cuda_capturing)>("fake_cuda_capturing");
  decltype(&fake_cuda_submit) submit_ = of_driver<decltype(fake_cuda_submit)>("fake_cuda_submit");
};

class Engine final : public nvinfer1::StubEngine {
 public:
  explicit Engine(const Facts& facts) : facts_(facts) {
    names_ = {"images", "labels"};
    if (facts.masks) names_.push_back("masks");
  }
  ~Engine() override { require_current(); }
  std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(names_.size()); }
  char const* getIOTensorName(std::int32_t index) const noexcept override {
    return names_[static_cast<std::size_t>(index)];
  }
  DataType getTensorDataType(char const* name) const noexcept override {
    if (name == std::string("labels")) return facts_.wide ? DataType::kINT32 : DataType::kUINT8;
    return name == std::string("images") && !facts_.normalized ? DataType::kUINT8 : DataType::kFLOAT;
  }
  nvinfer1::TensorIOMode getTensorIOMode(char const* name) const noexcept override {
    return name == std::string("images") ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
  }
  Dims getProfileShape(char const*, std::int32_t, nvinfer1::OptProfileSelector select) const noexcept override {
    if (facts_.fixed) return Dims{-1, {}};
    return select == nvinfer1::OptProfileSelector::kMIN ? facts_.images(1, 1, 1)
                                                        : facts_.images(facts_.B, facts_.H, facts_.W);
  }
  Dims getTensorShape(char const*) const noexcept override { return facts_.images(facts_.B, facts_.H, facts_.W); }
#ifdef SEGMENTER_TRT_RTX
  nvinfer1::IRuntimeConfig* createRuntimeConfig() noexcept override { return new Config; }
  nvinfer1::IExecutionContext* createExecutionContextWithRuntimeConfig(
      nvinfer1::IRuntimeConfig* config) noexcept override {
    return new Context(facts_, *static_cast<Config*>(config));
  }
#else
  nvinfer1::IExecutionContext* createExecutionContext(
      nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override {
    return new Context(facts_, strategy != nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
  }
#endif
  std::int64_t getDeviceMemorySizeV2() const noexcept override { return 4096; }

 private:
  const Facts facts_;
  std::vector<const char*> names_;
};

class Registry final : public nvinfer1::StubRegistry {
 public:
  PluginLibraryHandle loadLibrary(nvinfer1::AsciiChar const* path) noexcept override {
    if (std::string(path).find("missing") != std::string::npos) {
      complain("cannot open it");
      return nullptr;
    }
    if (std::string(path).find('/') == std::string::npos) {
      complain("no such library where the system looks");  // as dlopen has it
      return nullptr;
    }
    loaded_ = true;
    return this;
  }
  nvinfer1::IPluginCreatorInterface* getCreator(nvinfer1::AsciiChar const* const name, nvinfer1::AsciiChar const* const,
                                                nvinfer1::AsciiChar const* const) noexcept override {
    // only compared with null
    static char here;
    return loaded_ && name == std::string("SegmenterAttention")
               ? reinterpret_cast<nvinfer1::IPluginCreatorInterface*>(&here)
               : nullptr;
  }

 private:
  bool loaded_ = false;
};

class Runtime final : public nvinfer1::StubRuntime {
 public:
  explicit Runtime(nvinfer1::ILogger* given) {
    if (runtimes++ == 0) logger = given;
  }
  ~Runtime() override { --runtimes; }
  nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
    const std::optional<Facts> facts = fake_network::read(std::string(static_cast<const char*>(blob), size));
    if (!facts) {
      complain("this is no plan");
      return nullptr;
    }
    return new Engine(*facts);
  }
  nvinfer1::IPluginRegistry& getPluginRegistry() noexcept override { return registry_; }

 private:
  Registry registry_;
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))
#ifndef FAKE_MINOR
#define FAKE_MINOR NV_TENSORRT_MINOR
#endif

EXPORTED void* createInferRuntime_INTERNAL(void* given, std::int32_t) noexcept {
  return static_cast<nvinfer1::IRuntime*>(new Runtime(static_cast<nvinfer1::ILogger*>(given)));
}
#ifdef SEGMENTER_TRT_RTX
EXPORTED FakeKernels fake_kernels() {
  const std::lock_guard lock(kernels_mutex);
  return kernels;
}
#endif
EXPORTED std::int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
EXPORTED std::int32_t getInferLibMinorVersion() noexcept { return FAKE_MINOR; }
EXPORTED std::int32_t getInferLibPatchVersion() noexcept { return 1; }
EXPORTED std::int32_t getInferLibBuildVersion() noexcept { return 48; }
