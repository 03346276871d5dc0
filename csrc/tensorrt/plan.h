// A plan deserialised on a device: what all sessions of an engine share.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.h"
#include "launcher.h"
#include "library.h"
#include "owners.h"

namespace segmenter_trt::tensorrt {

inline constexpr char kImages[] = "images";
inline constexpr char kLabels[] = "labels";
inline constexpr char kMasks[] = "masks";

// A tensor the plan reads or writes.
struct Tensor {
  std::string name;
  nvinfer1::DataType type;
  std::size_t element_bytes;
  bool input;
};

// Scratch memory of the network that sessions share by taking turns, on the device as well as on the host.
struct SharedWorkspace {
  std::mutex mutex;
  cuda::DeviceMemory memory;
  cuda::Event last;  // recorded behind the last session that used it
};

// Of the kernels in this library; the process has one, for code is loaded once and never unloaded.
segmenter_launch::Launcher& launcher_of_process();

class Plan final : public Backend {
 public:
  // Throws Unavailable for what this machine lacks, ArtifactError for a plan it cannot load, InputError for options.
  explicit Plan(const BackendRequest& request, segmenter_launch::Launcher& launcher = launcher_of_process());
  ~Plan() override;

  Input input() const noexcept override { return input_; }
  bool gives_labels() const noexcept override { return gives(kLabels); }
  Description describe() const override;
  std::unique_ptr<Runner> make_runner(const SessionOptions& options) const override;

  const cuda::Driver& driver() const noexcept { return driver_; }
  const cuda::PrimaryContext& context() const noexcept { return context_; }
  const std::vector<Tensor>& tensors() const noexcept { return tensors_; }
  bool gives(const char* output) const noexcept;
  const Affine& preprocess() const noexcept { return preprocess_; }
  Log& log() const noexcept { return log_; }
  // Whether the GPU does these, by kernels of `launcher`, which is null where it does neither.
  bool merges_windows() const noexcept { return windows_left_.empty(); }
  bool resizes_pictures() const noexcept { return resizing_left_.empty(); }
  segmenter_launch::Launcher* launcher() const noexcept {
    return merges_windows() || resizes_pictures() ? &launcher_ : nullptr;
  }
  // That the network computes in.
  std::int64_t scratch_bytes() const noexcept { return engine_->getDeviceMemorySizeV2(); }

  // A context of the engine's, to be given scratch memory; fixed_kernels: whether each shape shall keep the kernels it
  // begins with, as a graph of them will. Throws RunError.
  std::unique_ptr<nvinfer1::IExecutionContext> make_context(bool fixed_kernels) const;
  // Memory of scratch_bytes. Throws RunError.
  cuda::DeviceMemory make_scratch() const;
  // Made at the first call. Throws RunError.
  SharedWorkspace& shared_workspace() const;

 private:
  void release() noexcept;
#ifdef SEGMENTER_TRT_RTX
  nvinfer1::IRuntimeConfig* config(bool fixed_kernels) const;
#endif
  void require_device(const Manifest& manifest, const std::string& artifact);
  void require_profile(const Manifest& manifest, const std::string& artifact) const;
  void load_kernels(std::int64_t K);
  void load_plugins(const BackendRequest& request);
  void read_tensors(const Manifest& manifest, const std::string& artifact);

  const cuda::Driver& driver_;
  cuda::DeviceNumber device_;
  std::string device_name_;
  cuda::PrimaryContext context_;
  Library library_;
  Input input_;
  Affine preprocess_;
  Log& log_ = Log::of_process();
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;  // goes before its runtime
  std::vector<Tensor> tensors_;
  segmenter_launch::Launcher& launcher_;
  std::string windows_left_, resizing_left_;  // why to the CPU
  mutable std::mutex mutex_;                  // of all below: TensorRT makes one context at a time
  mutable SharedWorkspace workspace_;
#ifdef SEGMENTER_TRT_RTX
  // TensorRT-RTX compiles kernels where it runs: the cache has the next context find them
  mutable std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
  // of lazy and of fixed kernels; contexts refer to them
  mutable std::unique_ptr<nvinfer1::IRuntimeConfig> configs_[2];
#endif
};

}  // namespace segmenter_trt::tensorrt
