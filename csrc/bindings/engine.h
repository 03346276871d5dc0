// Engine as the module holds it.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <utility>

#include "segmenter_trt/engine.h"

namespace segmenter_trt::bindings {

// An object that goes without the GIL: a runtime waits for its GPU and its threads, which others need not.
template <class Object>
class FreedWithoutGil {
 public:
  explicit FreedWithoutGil(Object object) : object_(std::move(object)) {}
  FreedWithoutGil(const FreedWithoutGil&) = delete;
  FreedWithoutGil& operator=(const FreedWithoutGil&) = delete;
  ~FreedWithoutGil() {
    const pybind11::gil_scoped_release release;
    object_.reset();
  }

  Object& operator*() { return *object_; }
  const Object& operator*() const { return *object_; }
  Object* operator->() { return &*object_; }
  const Object* operator->() const { return &*object_; }

 private:
  std::optional<Object> object_;
};

struct PyEngine {
  PyEngine(Engine opened, int number) : engine(std::move(opened)), device(number) {}

  FreedWithoutGil<Engine> engine;
  int device;  // GPU
};

pybind11::dict as_dict(const Description& description);

}  // namespace segmenter_trt::bindings
