// The Python extension segmenter_trt._native, put together of its parts.
#include <pybind11/pybind11.h>

#include "gil.h"
#include "parts.h"
#include "segmenter_trt/core_to_core.h"
#include "segmenter_trt/version.h"

namespace py = pybind11;
namespace trt = segmenter_trt;

namespace {

py::dict build_info() {
  const trt::BuildInfo info = trt::build_info();
  py::dict described;
  described["version"] = info.version;
  described["compiler"] = info.compiler;
  described["standard"] = info.standard;
  described["simd"] = info.simd;
  described["tensorrt"] = info.tensorrt;
  return described;
}

}  // namespace

PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.doc() = "The compiled parts of Segmenter: engines, sessions, and the routines around a network.";
  module.attr("__version__") = trt::build_info().version;
  module.def("build_info", &build_info,
             "What this module is and how it was built: version, compiler, standard, simd, tensorrt.");
  module.def("core_to_core_ns", &trt::core_to_core_ns, py::arg("first"), py::arg("second"),
             py::call_guard<trt::bindings::WithoutGil>(),
             R"(Nanoseconds a cache line takes from one core to another, half of a round trip; takes some milliseconds.

first, second: cores as os.sched_getaffinity numbers them. On a virtual machine it changes while it runs, as its host
moves its cores, and with it the time of networks whose threads hand over often.
Raises ValueError for one and the same core and for one this process may not run on, Unavailable where there
is no thread to be had, or none can choose its core.)");
  trt::bindings::add_errors(module);
  trt::bindings::add_routines(module);
  trt::bindings::add_engine(module);
  trt::bindings::add_session(module);
}
