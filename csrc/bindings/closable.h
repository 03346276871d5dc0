// What Python closes before it lets go of it: engines and sessions.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "gil.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt::bindings {

// An object that goes without the GIL: a runtime waits for its GPU and its threads, which others need not.
template <class Object>
class FreedWithoutGil {
 public:
  explicit FreedWithoutGil(Object object) : object_(std::move(object)) {}
  FreedWithoutGil(const FreedWithoutGil&) = delete;
  FreedWithoutGil& operator=(const FreedWithoutGil&) = delete;
  ~FreedWithoutGil() {
    const WithoutGil release;
    object_.reset();
  }

  Object* get() { return &*object_; }

 private:
  std::optional<Object> object_;
};

template <class Object>
class Closable {
 public:
  explicit Closable(Object object) : held_(std::make_shared<FreedWithoutGil<Object>>(std::move(object))) {}

  // For one call, which keeps the object if another thread closes it meanwhile. Throws RunError, saying what `closed`
  // says, once it is closed. With the GIL held, and when the call lets go of it too.
  std::shared_ptr<Object> get(const char* closed) const {
    std::shared_ptr<Object> object = find();
    if (object == nullptr) throw RunError(closed);
    return object;
  }

  // The same, and null once it is closed.
  std::shared_ptr<Object> find() const {
    const std::lock_guard lock(mutex_);
    return held_ == nullptr ? nullptr : std::shared_ptr<Object>(held_, held_->get());
  }

  void close() {
    std::shared_ptr<FreedWithoutGil<Object>> last;  // goes after the lock
    const std::lock_guard lock(mutex_);
    last.swap(held_);
  }

 private:
  mutable std::mutex mutex_;  // of the pointer
  std::shared_ptr<FreedWithoutGil<Object>> held_;
};

}  // namespace segmenter_trt::bindings
