// What a GPU gives and must get back, as owners that move and do not copy. All of it belongs to the context that was
// current when it was made, which must be current again when it goes.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "driver.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt::cuda {

// A handle, and the driver's function that gives it back.
template <class Handle, Status (*Driver::*Release)(Handle)>
class Owner {
 public:
  Owner() = default;
  Owner(const Driver& driver, Handle handle) noexcept : driver_(&driver), handle_(handle) {}
  Owner(Owner&& other) noexcept : driver_(other.driver_), handle_(std::exchange(other.handle_, Handle{})) {}
  Owner& operator=(Owner&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owner() {
    if (handle_) (driver_->*Release)(handle_);
  }

  Handle get() const noexcept { return handle_; }
  explicit operator bool() const noexcept { return handle_ != Handle{}; }

 private:
  const Driver* driver_ = nullptr;
  Handle handle_{};
};

using DeviceMemory = Owner<Address, &Driver::MemFree>;
using PinnedMemory = Owner<void*, &Driver::MemFreeHost>;
using Stream = Owner<StreamHandle, &Driver::StreamDestroy>;
using Event = Owner<EventHandle, &Driver::EventDestroy>;
using Graph = Owner<GraphHandle, &Driver::GraphDestroy>;
using GraphExec = Owner<GraphExecHandle, &Driver::GraphExecDestroy>;

// That there is too little memory for what was asked.
class OutOfMemory : public RunError {
 public:
  using RunError::RunError;
};

inline void check_memory(const Driver& driver, Status status, const char* what) {
  if (status == kOutOfMemory) throw OutOfMemory(std::string(what) + ": " + message(driver, status));
  check(driver, status, what);
}

// Each throws RunError when the driver refuses, and of memory OutOfMemory where there is too little.
inline DeviceMemory device_memory(const Driver& driver, std::size_t bytes) {
  Address address = 0;
  check_memory(driver, driver.MemAlloc(&address, bytes), "GPU memory");
  return {driver, address};
}

inline PinnedMemory pinned_memory(const Driver& driver, std::size_t bytes) {
  void* memory = nullptr;
  check_memory(driver, driver.MemHostAlloc(&memory, bytes, 0), "pinned memory");
  return {driver, memory};
}

inline Stream stream(const Driver& driver) {
  StreamHandle made = nullptr;
  check(driver, driver.StreamCreate(&made, kStreamNonBlocking), "stream");
  return {driver, made};
}

inline Event event(const Driver& driver) {
  EventHandle made = nullptr;
  check(driver, driver.EventCreate(&made, kEventDisableTiming), "event");
  return {driver, made};
}

// The primary context of a device, which PyTorch and CUDA's runtime use too.
class PrimaryContext {
 public:
  PrimaryContext(const Driver& driver, DeviceNumber device) : driver_(driver), device_(device) {
    check(driver, driver.DevicePrimaryCtxRetain(&context_, device), "GPU context");
  }
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;
  ~PrimaryContext() { driver_.DevicePrimaryCtxRelease(device_); }

  Context get() const noexcept { return context_; }

 private:
  const Driver& driver_;
  DeviceNumber device_;
  Context context_ = nullptr;
};

// Makes a context current for a while, on top of whatever is current.
class Current {
 public:
  Current(const Driver& driver, const PrimaryContext& context) : driver_(driver) {
    check(driver, driver.CtxPushCurrent(context.get()), "GPU context");
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() {
    Context popped = nullptr;
    driver_.CtxPopCurrent(&popped);
  }

 private:
  const Driver& driver_;
};

}  // namespace segmenter_trt::cuda
