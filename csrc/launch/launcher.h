// Launches the kernels of this library on the current device: loads them once a device, fills every parameter by name.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "calls.h"
#include "driver.h"
#include "kernels.h"

namespace segmenter_launch {

// Safe to use from many threads. Nothing is allocated or waited for by a launch whose kernel is loaded already.
class Launcher {
 public:
  // `library`: the CUDA driver's shared library, opened when it is first needed.
  explicit Launcher(const Kernels& kernels = kKernels, std::string library = "libcuda.so.1");

  // Throws Failure when this library has no kernel for the call, on any architecture; needs no driver.
  void require(const Call& call) const;
  // Loads what the call needs on the current device, so that `launch` may be captured in a CUDA graph.
  void prepare(const Call& call);
  // Throws Failure: no driver, no kernel for the call or the device, an argument it was not compiled for, CUDA's error.
  void launch(const Call& call, Stream stream);

  const Kernels& kernels() const noexcept { return kernels_; }

 private:
  struct Loaded {
    const Form* form;
    Kernel kernel;
  };

  static constexpr std::size_t kMaxDevices = 64;

  const Loaded& loaded(const Image& image);
  Loaded load(const Image& image, Device device);
  const Driver& driver();
  const Form& expected(const Image& image, int capability) const;

  const Kernels kernels_;
  const std::string library_;
  std::atomic<const Driver*> ready_{nullptr};
  std::vector<std::atomic<const Loaded*>> slots_;  // of image and device
  std::mutex mutex_;                               // guards what follows
  std::optional<Driver> driver_;
  int driver_version_ = 0;
  std::vector<Library> libraries_;  // of each image; never unloaded, for the driver may be gone before this is
  std::deque<Loaded> storage_;
};

}  // namespace segmenter_launch
