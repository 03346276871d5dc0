// Engine as the module holds it.
#pragma once

#include <pybind11/pybind11.h>

#include "segmenter_trt/engine.h"

namespace segmenter_trt::bindings {

struct PyEngine {
  Engine engine;
  int device;  // GPU
};

pybind11::dict as_dict(const Description& description);

}  // namespace segmenter_trt::bindings
