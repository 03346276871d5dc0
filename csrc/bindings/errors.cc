// The errors of segmenter_trt/errors.h as classes of Python.
#include "segmenter_trt/errors.h"

#include <pybind11/pybind11.h>

#include <exception>
#include <string>
#include <string_view>

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

// Paths in it need not be UTF-8: their other bytes become what Python makes of them in file names.
void set_error(PyObject* kind, const Error& error) {
  const std::string_view what = error.what();
  PyObject* const text = PyUnicode_DecodeUTF8(what.data(), static_cast<Py_ssize_t>(what.size()), "surrogateescape");
  py::set_error(kind, py::reinterpret_steal<py::object>(text));
}

void translate(std::exception_ptr thrown) {  // NOLINT(performance-unnecessary-value-param): as pybind11 calls it
  if (!thrown) return;
  try {
    std::rethrow_exception(thrown);
  } catch (const ManifestError& error) {
    set_error(classes.manifest, error);
  } catch (const ArtifactError& error) {
    set_error(classes.artifact, error);
  } catch (const Unavailable& error) {
    set_error(classes.unavailable, error);
  } catch (const InputError& error) {
    set_error(classes.input, error);
  } catch (const RunError& error) {
    set_error(classes.run, error);
  } catch (const Error& error) {
    set_error(classes.base, error);
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
