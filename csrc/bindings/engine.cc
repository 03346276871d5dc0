// segmenter_trt.Engine: an artifact opened in a runtime.
#include "engine.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "gil.h"
#include "parts.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt::bindings {
namespace {

namespace py = pybind11;
namespace fs = std::filesystem;

py::tuple as_tuple(const Range& range) { return py::make_tuple(range.min, range.opt, range.max); }

template <class Items>
py::tuple as_tuple(const Items& items) {
  py::tuple tuple(items.size());
  for (std::size_t i = 0; i < items.size(); ++i) tuple[i] = items[i];
  return tuple;
}

py::object from_json(const std::string& text) { return py::module_::import("json").attr("loads")(text); }

py::dict manifest_dict(const Manifest& manifest) {
  py::tuple palette(manifest.palette.size());
  for (std::size_t k = 0; k < manifest.palette.size(); ++k) palette[k] = as_tuple(manifest.palette[k]);
  py::dict preprocess;
  preprocess["mean"] = as_tuple(manifest.preprocess.mean);
  preprocess["std"] = as_tuple(manifest.preprocess.std);
  py::dict facts;
  facts["artifact"] = manifest.artifact;
  facts["kind"] = manifest.kind == Kind::onnx ? "onnx" : "plan";
  facts["engine"] = manifest.engine;
  facts["precision"] = manifest.precision;
  facts["sha256"] = manifest.sha256;
  facts["source"] = manifest.source;
  facts["model"] = manifest.model;
  facts["patch_size"] = manifest.patch_size;
  facts["input"] = manifest.input == Input::pixels ? "pixels" : "normalized";
  facts["height"] = as_tuple(manifest.height);
  facts["width"] = as_tuple(manifest.width);
  facts["batch"] = as_tuple(manifest.batch);
  facts["outputs"] = as_tuple(manifest.outputs);
  facts["classes"] = as_tuple(manifest.classes);
  facts["palette"] = palette;
  facts["preprocess"] = preprocess;
  facts["command"] = manifest.command;
  facts["versions"] = manifest.versions;
  facts["machine"] = manifest.machine;
  facts["plugins"] = as_tuple(manifest.plugins);
  facts["compute_capabilities"] = as_tuple(manifest.compute_capabilities);
  facts["details"] = from_json(manifest.details);
  facts["verification"] = from_json(manifest.verification);
  facts["format"] = kManifestFormat;
  return facts;
}

// Fills in what the caller did not name and Python knows: the folder a runtime's package brings its libraries in, and
// the plugins that were installed with this module.
void find_libraries(const fs::path& artifact, EngineOptions& options) {
  std::string runtime;
  bool plugins = false;
  try {
    const Manifest manifest = read_manifest(artifact);
    runtime = manifest.kind == Kind::onnx ? "openvino" : manifest.engine;
    plugins = !manifest.plugins.empty();
  } catch (const Error&) {
    return;  // opening the engine says it, after what comes first
  }
  const auto found = [](const py::object& path) { return path.is_none() ? fs::path() : path.cast<fs::path>(); };
  const py::object places = py::module_::import("segmenter_trt.runtimes");
  if (options.runtime.empty()) options.runtime = found(places.attr("folder")(runtime));
  if (options.plugins.empty() && plugins) options.plugins = found(places.attr("plugins")());
}

std::unique_ptr<PyEngine> open_engine(const fs::path& path, const std::optional<std::string>& backend,
                                      const std::optional<std::string>& precision, int threads, int streams, int device,
                                      const std::optional<fs::path>& runtime, const std::optional<fs::path>& plugins,
                                      bool require_verified) {
  EngineOptions options = {
      .backend = backend.value_or(""),
      .precision = precision.value_or(""),
      .threads = threads,
      .streams = streams,
      .device = device,
      .runtime = runtime.value_or(fs::path()),
      .plugins = plugins.value_or(fs::path()),
      .require_verified = require_verified,
  };
  find_libraries(path, options);
  const auto opened = [&] {
    const WithoutGil release;
    return Engine::open(path, options);
  };
  return std::make_unique<PyEngine>(opened(), device);
}

}  // namespace

std::string PyEngine::represent() const {
  const auto engine = engine_.find();
  if (engine == nullptr) return "<segmenter_trt.Engine, closed>";
  const Description facts = engine->describe();
  return "<segmenter_trt.Engine " + engine->manifest().artifact + ", " + facts.runtime + ", " + facts.device + ">";
}

py::dict as_dict(const Description& description) {
  py::dict facts;
  facts["engine"] = description.engine;
  facts["runtime"] = description.runtime;
  facts["device"] = description.device;
  facts["precision"] = description.precision;
  facts["floats"] = description.floats;
  facts["model"] = description.model;
  facts["labels_by"] = description.labels_by;
  facts["windows_by"] = description.windows_by;
  facts["resized_by"] = description.resized_by;
  facts["input"] = description.input == Input::pixels ? "pixels" : "normalized";
  facts["warning"] = description.warning;
  facts["no_graphs"] = description.no_graphs.empty() ? py::object(py::none()) : py::cast(description.no_graphs);
  facts["threads"] = description.threads;
  facts["height"] = as_tuple(description.height);
  facts["width"] = as_tuple(description.width);
  facts["batch"] = as_tuple(description.batch);
  return facts;
}

void add_engine(py::module_& module) {
  py::class_<PyEngine>(
      module, "Engine", py::is_final(),
      R"(An exported ONNX on the CPU or a plan on a GPU, opened in its runtime; immutable, for any number of threads.

path: the artifact, whose manifest lies beside it as `<artifact>.json`; the hash in it is checked first.
backend: openvino, tensorrt or tensorrt-rtx, None for the one the artifact is for; precision: of OpenVINO's
floating-point layers, fp32 or bf16, None chooses; threads: of the CPU, 0 for every core this process may use; streams:
sessions the CPU serves at the same moment, which share the threads; device: GPU; runtime: library of the runtime or its
folder, None takes the one that SEGMENTER_TRT_OPENVINO or SEGMENTER_TRT_TENSORRT names, then that of its Python package,
then the system's; plugins: library of the plugins a plan asks for, None takes the one that SEGMENTER_TRT_PLUGINS names,
then the one installed with this module; require_verified: refuse an artifact whose manifest does not say
that it passed `segmenter verify` in this engine, which `describe()["warning"]` tells otherwise.
With `with`, or when `close` is called, it is closed at once. Raises ManifestError, ArtifactError, Unavailable, and
InputError for options that are none.)")
      .def(py::init(&open_engine), py::arg("path"), py::kw_only(), py::arg("backend") = py::none(),
           py::arg("precision") = py::none(), py::arg("threads") = 0, py::arg("streams") = 1, py::arg("device") = 0,
           py::arg("runtime") = py::none(), py::arg("plugins") = py::none(), py::arg("require_verified") = false)
      .def_property_readonly(
          "manifest", [](const PyEngine& self) { return manifest_dict(self.engine()->manifest()); },
          "What the artifact's manifest says, under the names it has there: classes, palette, height, ...")
      .def(
          "describe", [](const PyEngine& self) { return as_dict(self.engine()->describe()); },
          "Facts for people and reports: engine, runtime, device, precision, threads, sizes, where labels are made.")
      .def("close", &PyEngine::close,
           R"(Lets go of the artifact, whose memory is given back with its last session: those that are open stay so.

Other calls then raise RunError. A second time it does nothing.)")
      .def("__enter__",
           [](py::object self) {
             self.cast<const PyEngine&>().engine();
             return self;
           })
      .def("__exit__", [](PyEngine& self, const py::args&) { self.close(); })
      .def("__repr__", &PyEngine::represent);
}

}  // namespace segmenter_trt::bindings
