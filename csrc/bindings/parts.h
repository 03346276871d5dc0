// The parts of the module, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace segmenter_trt::bindings {

void add_errors(pybind11::module_& module);    // errors.cc
void add_routines(pybind11::module_& module);  // routines.cc
void add_engine(pybind11::module_& module);    // engine.cc
void add_session(pybind11::module_& module);   // session.cc

}  // namespace segmenter_trt::bindings
