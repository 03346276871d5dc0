// Engine as the module holds it.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>

#include "closable.h"
#include "segmenter_trt/engine.h"

namespace segmenter_trt::bindings {

class PyEngine {
 public:
  PyEngine(Engine opened, int device) : engine_(std::move(opened)), device_(device) {}

  std::shared_ptr<const Engine> engine() const { return engine_.get("engine: is closed; open it again"); }
  int device() const { return device_; }  // GPU
  std::string represent() const;
  void close() { engine_.close(); }

 private:
  Closable<Engine> engine_;
  int device_;
};

pybind11::dict as_dict(const Description& description);

}  // namespace segmenter_trt::bindings
