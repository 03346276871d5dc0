// The errors of segmenter_trt/errors.h as classes of Python.
#include "segmenter_trt/errors.h"

#include <pybind11/pybind11.h>

#include <exception>

#include "parts.h"

namespace segmenter_trt::bindings {
namespace {

namespace py = pybind11;

// Of the module, which lives as long as the process.
struct Classes {
  PyObject *base, *manifest, *artifact, *unavailable, *input, *run;
};
Classes classes;

PyObject* make(py::module_& module, const char* name, const char* doc, const py::handle& bases) {
  const std::string full = std::string("segmenter_trt.") + name;
  PyObject* const made = PyErr_NewExceptionWithDoc(full.c_str(), doc, bases.ptr(), nullptr);
  if (made == nullptr) throw py::error_already_set();
  module.add_object(name, made);
  return made;
}

void translate(std::exception_ptr thrown) {  // NOLINT(performance-unnecessary-value-param): as pybind11 calls it
  if (!thrown) return;
  try {
    std::rethrow_exception(thrown);
  } catch (const ManifestError& error) {
    py::set_error(classes.manifest, error.what());
  } catch (const ArtifactError& error) {
    py::set_error(classes.artifact, error.what());
  } catch (const Unavailable& error) {
    py::set_error(classes.unavailable, error.what());
  } catch (const InputError& error) {
    py::set_error(classes.input, error.what());
  } catch (const RunError& error) {
    py::set_error(classes.run, error.what());
  } catch (const Error& error) {
    py::set_error(classes.base, error.what());
  }
}

}  // namespace

void add_errors(py::module_& module) {
  classes.base = make(module, "Error", "Base of every error an engine or a session raises on purpose; one line.",
                      py::handle(PyExc_Exception));
  const py::handle base(classes.base);
  classes.manifest = make(module, "ManifestError",
                          "The JSON beside an artifact is missing, is no manifest, or is of another format.", base);
  classes.artifact =
      make(module, "ArtifactError",
           "The artifact is missing, is not the file its manifest vouches for, or cannot be opened.", base);
  classes.unavailable =
      make(module, "Unavailable",
           "This machine lacks the library, the driver or the device: nothing is wrong with the engine.", base);
  classes.input = make(module, "InputError", "Images, labels or options that this engine does not take.",
                       py::make_tuple(base, py::handle(PyExc_ValueError)));
  classes.run = make(
      module, "RunError",
      "The network failed or gave scores that are no numbers; or its session is in use by another call, or closed.",
      base);
  py::register_local_exception_translator(&translate);
}

}  // namespace segmenter_trt::bindings
