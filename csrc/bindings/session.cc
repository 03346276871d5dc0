// segmenter_trt.Session: images in, labels out, in memory of Python's.
#include "segmenter_trt/session.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "closable.h"
#include "engine.h"
#include "exclusive.h"
#include "gil.h"
#include "images.h"
#include "memory.h"
#include "parts.h"
#include "segmenter_trt/sliding_window.h"

namespace segmenter_trt::bindings {
namespace {

// Ctrl-C: throws what a signal's handler raised. Handlers run in Python's main thread; in others this does nothing.
void check_signals() {
  std::optional<py::gil_scoped_acquire> acquired;
  take_gil([&] { acquired.emplace(); });
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// An argmax of the caller's would label NaN as if nothing were wrong.
void require_finite(const float* values, std::int64_t count, const char* name) {
  std::uint32_t odd = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    odd |= (std::bit_cast<std::uint32_t>(values[i]) & 0x7F800000U) == 0x7F800000U ? 1U : 0U;
  }
  if (odd != 0) {
    throw RunError(std::string(name) +
                   ": scores that are no numbers; fp16 ends at 65504, so try bf16 or fp32, and look"
                   " for NaN in normalized images and in the weights");
  }
}

class PySession {
 public:
  PySession(py::object engine, const SessionOptions& options)
      : owner_(std::move(engine)),
        device_(owner_.cast<const PyEngine&>().device()),
        session_(make(*owner_.cast<const PyEngine&>().engine(), options)),
        wide_(opened()->engine().manifest().K() > 256) {}

  py::object engine() const { return owner_; }
  py::dict describe() const { return as_dict(opened()->describe()); }

  // Each call holds the session until it ends.
  std::shared_ptr<Session> opened() const { return session_.get("session: is closed; open another one of its engine"); }

  void close() {
    const Exclusive one(held_);
    session_.close();
  }

  std::string represent() const {
    return "<segmenter_trt.Session of " + py::repr(owner_).cast<std::string>() +
           (session_.find() == nullptr ? ", closed>" : ">");
  }

  py::object run(const py::object& images, const py::object& out) {
    const std::shared_ptr<Session> session = opened();
    const Memory input = on_host(images, "images", kImages);
    const ImagesView view = pixels_of(input, kImages);
    const Labels labels = labels_for(input, view, wide_, out);
    const Exclusive one(held_);
    {
      const WithoutGil release;
      in_calls(*session, view.B, [&](std::int64_t first, std::int64_t count) {
        const std::int64_t pixels = first * view.H * view.W;
        const ImagesView part = {view.data + pixels * 3, count, view.H, view.W};
        with_labels(labels.data, pixels, {view.H, view.W}, [&](const auto& to) { session->run(part, to); });
      });
    }
    return labels.object;
  }

  py::object run_resized(const py::object& images, const std::optional<std::pair<std::int64_t, std::int64_t>>& size,
                         const py::object& out) {
    const std::shared_ptr<Session> session = opened();
    const Memory input = on_host(images, "images", kImages);
    const ImagesView view = pixels_of(input, kImages);
    const Manifest& manifest = session->engine().manifest();
    const auto [H, W] = size.value_or(std::pair(manifest.height.opt, manifest.width.opt));
    // before memory is asked for
    if (!manifest.height.holds(H) || !manifest.width.holds(W)) {
      throw InputError("size " + std::to_string(H) + "x" + std::to_string(W) +
                       ": this engine takes other sizes; see describe()['height'] and ['width']");
    }
    const Labels labels = labels_for(input, {view.data, view.B, H, W}, wide_, out);
    const Exclusive one(held_);
    {
      const WithoutGil release;
      std::vector<ImagesView> pictures;
      in_calls(*session, view.B, [&, H = H, W = W](std::int64_t first, std::int64_t count) {
        pictures.clear();
        for (std::int64_t b = first; b < first + count; ++b) {
          pictures.push_back({view.data + b * view.H * view.W * 3, 1, view.H, view.W});
        }
        with_labels(labels.data, first * H * W, {H, W}, [&](const auto& to) { session->run_resized(pictures, to); });
      });
    }
    return labels.object;
  }

  py::object sliding_window(const py::object& image, std::int64_t window, std::int64_t stride, std::int64_t batch,
                            const py::object& out) {
    const std::shared_ptr<Session> session = opened();
    const Memory input = on_host(image, "image", kImage);
    const ImagesView view = pixels_of(input, kImage);
    if (!single(input)) throw InputError(input.describe() + ": wanted one image, " + kImage);
    const Labels labels = labels_for(input, view, wide_, out);
    const WindowOptions options = {.window = window, .stride = stride, .batch = batch, .between = check_signals};
    const Exclusive one(held_);
    {
      const WithoutGil release;
      with_labels(labels.data, 0, {view.H, view.W},
                  [&](const auto& to) { run_sliding_window(*session, view, to, options); });
    }
    return labels.object;
  }

  py::array_t<float> masks(const py::object& images) {
    const std::shared_ptr<Session> session = opened();
    const Memory input = on_host(images, "images", kNetworkInput);
    if (input.dtype == "uint8") {
      const ImagesView view = pixels_of(input, kNetworkInput);
      return masks_of(*session, single(input), view, view.H * view.W * 3);
    }
    require_dtype(input, "float32", kNetworkInput);
    const Batch batch = batch_of(input, 0, kNetworkInput);
    require_contiguous(input);
    const NormalizedView view = {static_cast<const float*>(input.data), batch.B, batch.rest[1], batch.rest[2]};
    return masks_of(*session, batch.single, view, view.H * view.W * 3);
  }

  py::array_t<float> logits(const py::object& images) {
    const std::shared_ptr<Session> session = opened();
    const Memory input = on_host(images, "images", kImages);
    const ImagesView view = pixels_of(input, kImages);
    const std::int64_t K = session->engine().manifest().K(), pixels = view.H * view.W;
    py::array_t<float> logits(shaped(single(input), view.B, {K, view.H, view.W}));
    float* const data = logits.mutable_data();
    const Exclusive one(held_);
    {
      const WithoutGil release;
      in_calls(*session, view.B, [&](std::int64_t first, std::int64_t count) {
        session->logits({view.data + first * pixels * 3, count, view.H, view.W}, data + first * K * pixels);
        require_finite(data + first * K * pixels, count * K * pixels, "logits");
      });
    }
    return logits;
  }

  py::object run_async(const py::object& images, const py::object& out, const py::object& stream) {
    const std::shared_ptr<Session> session = opened();
    const std::uintptr_t number = stream_of(stream);
    const Memory input = on_device(images, "images", kImages, number);
    const ImagesView view = pixels_of(input, kImages);
    const Memory labels = on_device(out, "out", wanted_labels(input, view, wide_), number);
    require_labels(labels, input, view, wide_);
    for (const Memory* const memory : {&input, &labels}) {
      if (memory->device != -1 && memory->device != device_) {
        throw InputError(memory->name + ": lies on GPU " + std::to_string(memory->device) +
                         ", and this engine runs on GPU " + std::to_string(device_) + "; copy it there");
      }
    }
    const Exclusive one(held_);
    {
      const WithoutGil release;
      void* const handle = reinterpret_cast<void*>(number);  // NOLINT(performance-no-int-to-ptr): as Python has it
      session->enqueue(view, labels.data, handle);
    }
    return out;
  }

 private:
  static Session make(const Engine& engine, const SessionOptions& options) {
    const WithoutGil release;
    return Session(engine, options);
  }

  // Labels from pixel `offset` on, as the type this engine's have.
  template <class Call>
  void with_labels(void* data, std::int64_t offset, Size size, const Call& call) const {
    if (wide_) {
      call(LabelsView<std::int16_t>{static_cast<std::int16_t*>(data) + offset, size});
    } else {
      call(LabelsView<std::uint8_t>{static_cast<std::uint8_t*>(data) + offset, size});
    }
  }

  // More images than the engine takes at once go in several calls of nearly the same number, with a look at Ctrl-C
  // between them; where that is fewer than it takes, calls share images. Fewer in all, as none, are the core's to
  // refuse.
  template <class Call>
  static void in_calls(const Session& session, std::int64_t B, const Call& call) {
    const Range batch = session.engine().manifest().batch;
    const std::int64_t least = std::min<std::int64_t>(batch.min, B), most = std::max<std::int64_t>(batch.max, 1);
    const std::int64_t calls = std::max<std::int64_t>((B + most - 1) / most, 1);
    for (std::int64_t i = 0; i < calls; ++i) {
      if (i != 0) check_signals();
      const std::int64_t first = std::min(B * i / calls, B - least);
      call(first, std::max(B * (i + 1) / calls - first, least));
    }
  }

  template <class View>
  py::array_t<float> masks_of(Session& session, bool single, const View& view, std::int64_t values) {
    const Manifest& manifest = session.engine().manifest();
    const std::int64_t P = manifest.patch_size, h = (view.H + P - 1) / P, w = (view.W + P - 1) / P;
    py::array_t<float> masks(shaped(single, view.B, {manifest.K(), h, w}));
    float* const data = masks.mutable_data();
    const std::int64_t each = manifest.K() * h * w;
    const Exclusive one(held_);
    {
      const WithoutGil release;
      in_calls(session, view.B, [&](std::int64_t first, std::int64_t count) {
        const MasksView made = session.masks(View{view.data + first * values, count, view.H, view.W});
        if (made.B * made.K * made.h * made.w != count * each) throw RunError("masks: of another shape than promised");
        require_finite(made.data, count * each, "masks");
        std::copy_n(made.data, count * each, data + first * each);
      });
    }
    return masks;
  }

  py::object owner_;
  int device_;
  Closable<Session> session_;
  bool wide_;  // labels are int16
  std::atomic_flag held_ = ATOMIC_FLAG_INIT;
};

std::unique_ptr<PySession> open_session(const py::object& engine, int threads, bool graphs, bool shared_workspace) {
  if (!py::isinstance<PyEngine>(engine)) {
    throw py::type_error("engine " + py::repr(engine).cast<std::string>() + ": wanted a segmenter_trt.Engine");
  }
  return std::make_unique<PySession>(
      engine, SessionOptions{.threads = threads, .graphs = graphs, .shared_workspace = shared_workspace});
}

}  // namespace

void add_session(py::module_& module) {
  py::class_<PySession>(module, "Session", py::is_final(),
                        R"(Images in, labels out; one per thread, and any number of one engine.

threads: of the CPU, around the network, 0 for the engine's. On a GPU: graphs replays each shape as a CUDA graph,
shared_workspace lets all sessions that ask for it take turns in one workspace.
Host arrays are NumPy arrays, buffers or DLPack tensors, C-contiguous, and are never copied. Calls release the GIL; a
call while another one runs raises RunError. Ctrl-C is heard between calls of the network, and leaves `out` half
written. With `with`, or when `close` is called, its memory, and the GPU's, is given back at once; other calls then
raise RunError.)")
      .def(py::init(&open_session), py::arg("engine"), py::kw_only(), py::arg("threads") = 0, py::arg("graphs") = true,
           py::arg("shared_workspace") = false)
      .def_property_readonly("engine", &PySession::engine, "The engine this session is of.")
      .def("run", &PySession::run, py::arg("images"), py::arg("out") = py::none(),
           R"(Labels of images: uint8 RGB [B, H, W, 3] -> uint8 [B, H, W] (int16 when K > 256); [H, W, 3] -> [H, W].

Of a size the engine takes, and at least its smallest batch of them; more than its largest go in several calls. out:
memory for the labels, which is written and returned; None makes a NumPy array.
Raises InputError (a ValueError) for other images or labels, RunError when the network fails or gives no numbers.)")
      .def("run_resized", &PySession::run_resized, py::arg("images"), py::kw_only(), py::arg("size") = py::none(),
           py::arg("out") = py::none(),
           R"(Labels of images of any size, resized first: uint8 RGB [B, H, W, 3] -> [B, H', W']; [H, W, 3] -> [H', W'].

size: (H', W') that the engine takes, None for the one it is tuned for. Pixels are those of `segmenter_trt.resize`, made
on the GPU where `describe()["resized_by"]` says so. out and Raises as in run.)")
      .def("sliding_window", &PySession::sliding_window, py::arg("image"), py::kw_only(), py::arg("window"),
           py::arg("stride") = 0, py::arg("batch") = 1, py::arg("out") = py::none(),
           R"(Labels of one image of any size, uint8 RGB [H, W, 3] -> [H, W], through windows the engine takes.

window: side in pixels; stride: pixels from one to the next, 0 for the window's side; batch: windows in one call of the
network. Logits are averaged where windows overlap, on the GPU where `describe()["windows_by"]` says so. out and Raises
as in run; InputError for windows that leave gaps.)")
      .def("masks", &PySession::masks, py::arg("images"),
           R"(Class masks on the patch grid of the padded image: float32 [B, K, h, w], or [K, h, w] of one image.

images: uint8 RGB as in run, or, where the engine takes those, normalized float32 [B, 3, H, W] or [3, H, W].
Raises as run does.)")
      .def("logits", &PySession::logits, py::arg("images"),
           R"(Scores of every pixel: uint8 RGB [B, H, W, 3] -> float32 [B, K, H, W]; [H, W, 3] -> [K, H, W].

Raises as run does.)")
      .def("run_async", &PySession::run_async, py::arg("images"), py::arg("out"), py::kw_only(),
           py::arg("stream") = py::none(),
           R"(Labels of images on the GPU, into memory there, enqueued on a stream and not waited for; returns `out`.

images, out: as in run, as DLPack tensors or with __cuda_array_interface__ (PyTorch, CuPy, Numba, PyCUDA); both must
stay as they are until the stream has passed them. stream: of PyTorch, CuPy or PyCUDA, or its address; None is the
default one. Scores that are no numbers go unseen here. Raises InputError, and Unavailable where the engine runs on the
CPU.)")
      .def("describe", &PySession::describe,
           "The engine's facts; on a GPU also why this session replays no CUDA graphs, where it does not.")
      .def("close", &PySession::close,
           R"(Gives back what the session holds; its engine stays open. A second time it does nothing.

Raises RunError while another call runs.)")
      .def("__enter__",
           [](py::object self) {
             self.cast<const PySession&>().opened();
             return self;
           })
      .def("__exit__", [](PySession& self, const py::args&) { self.close(); })
      .def("__repr__", &PySession::represent);
}

}  // namespace segmenter_trt::bindings
