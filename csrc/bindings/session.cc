// segmenter_trt.Session: images in, labels out, in memory of Python's.
#include "segmenter_trt/session.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "exclusive.h"
#include "memory.h"
#include "parts.h"
#include "segmenter_trt/sliding_window.h"

namespace segmenter_trt::bindings {
namespace {

constexpr char kImages[] = "uint8 RGB [H, W, 3] or [B, H, W, 3]", kImage[] = "uint8 RGB [H, W, 3]";
constexpr char kNetworkInput[] = "uint8 RGB [H, W, 3] or [B, H, W, 3], or normalized float32 [3, H, W] or [B, 3, H, W]";

// Ctrl-C: throws what a signal's handler raised. Handlers run in Python's main thread; in others this does nothing.
void check_signals() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Shape [B, ...] of one image or a batch of them, each of three dimensions; `channels` is the place of the 3.
struct Batch {
  std::int64_t B;
  const std::int64_t* rest;
  bool single;
};

Batch batch_of(const Memory& memory, std::size_t channels, const char* wanted) {
  const bool single = memory.shape.size() == 3;
  if ((!single && memory.shape.size() != 4) || memory.shape[channels + (single ? 0 : 1)] != 3) {
    throw InputError(memory.describe() + ": wanted " + wanted);
  }
  return {single ? 1 : memory.shape[0], memory.shape.data() + (single ? 0 : 1), single};
}

ImagesView pixels_of(const Memory& memory, const char* wanted) {
  require_dtype(memory, "uint8", wanted);
  const Batch batch = batch_of(memory, 2, wanted);
  require_contiguous(memory);
  return {static_cast<const std::uint8_t*>(memory.data), batch.B, batch.rest[0], batch.rest[1]};
}

bool single(const Memory& memory) { return memory.shape.size() == 3; }

std::vector<py::ssize_t> shaped(bool single, std::int64_t B, std::initializer_list<std::int64_t> rest) {
  std::vector<py::ssize_t> shape(rest.begin(), rest.end());
  if (!single) shape.insert(shape.begin(), B);
  return shape;
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
        device_(owner_.cast<const PyEngine&>().device),
        session_(make(*owner_.cast<const PyEngine&>().engine, options)),
        wide_(session_->engine().manifest().K() > 256) {}

  py::object engine() const { return owner_; }
  py::dict describe() const { return as_dict(session_->describe()); }

  py::object run(const py::object& images, const py::object& out) {
    const Memory input = on_host(images, "images", kImages);
    const ImagesView view = pixels_of(input, kImages);
    const Labels labels = labels_for(input, view, out);
    const Exclusive one(held_);
    {
      const py::gil_scoped_release release;
      in_calls(view.B, [&](std::int64_t first, std::int64_t count) {
        const std::int64_t pixels = first * view.H * view.W;
        const ImagesView part = {view.data + pixels * 3, count, view.H, view.W};
        with_labels(labels.data, pixels, {view.H, view.W}, [&](const auto& to) { session_->run(part, to); });
      });
    }
    return labels.object;
  }

  py::object run_resized(const py::object& images, const std::optional<std::pair<std::int64_t, std::int64_t>>& size,
                         const py::object& out) {
    const Memory input = on_host(images, "images", kImages);
    const ImagesView view = pixels_of(input, kImages);
    const Manifest& manifest = session_->engine().manifest();
    const auto [H, W] = size.value_or(std::pair(manifest.height.opt, manifest.width.opt));
    // before memory is asked for
    if (!manifest.height.holds(H) || !manifest.width.holds(W)) {
      throw InputError("size " + std::to_string(H) + "x" + std::to_string(W) +
                       ": this engine takes other sizes; see describe()['height'] and ['width']");
    }
    const Labels labels = labels_for(input, {view.data, view.B, H, W}, out);
    const Exclusive one(held_);
    {
      const py::gil_scoped_release release;
      std::vector<ImagesView> pictures;
      in_calls(view.B, [&, H = H, W = W](std::int64_t first, std::int64_t count) {
        pictures.clear();
        for (std::int64_t b = first; b < first + count; ++b) {
          pictures.push_back({view.data + b * view.H * view.W * 3, 1, view.H, view.W});
        }
        with_labels(labels.data, first * H * W, {H, W}, [&](const auto& to) { session_->run_resized(pictures, to); });
      });
    }
    return labels.object;
  }

  py::object sliding_window(const py::object& image, std::int64_t window, std::int64_t stride, std::int64_t batch,
                            const py::object& out) {
    const Memory input = on_host(image, "image", kImage);
    const ImagesView view = pixels_of(input, kImage);
    if (!single(input)) throw InputError(input.describe() + ": wanted one image, " + kImage);
    const Labels labels = labels_for(input, view, out);
    const WindowOptions options = {.window = window, .stride = stride, .batch = batch, .between = check_signals};
    const Exclusive one(held_);
    {
      const py::gil_scoped_release release;
      with_labels(labels.data, 0, {view.H, view.W},
                  [&](const auto& to) { run_sliding_window(*session_, view, to, options); });
    }
    return labels.object;
  }

  py::array_t<float> masks(const py::object& images) {
    const Memory input = on_host(images, "images", kNetworkInput);
    if (input.dtype == "uint8") {
      const ImagesView view = pixels_of(input, kNetworkInput);
      return masks_of(single(input), view, view.H * view.W * 3);
    }
    require_dtype(input, "float32", kNetworkInput);
    const Batch batch = batch_of(input, 0, kNetworkInput);
    require_contiguous(input);
    const NormalizedView view = {static_cast<const float*>(input.data), batch.B, batch.rest[1], batch.rest[2]};
    return masks_of(batch.single, view, view.H * view.W * 3);
  }

  py::array_t<float> logits(const py::object& images) {
    const Memory input = on_host(images, "images", kImages);
    const ImagesView view = pixels_of(input, kImages);
    const std::int64_t K = session_->engine().manifest().K(), pixels = view.H * view.W;
    py::array_t<float> logits(shaped(single(input), view.B, {K, view.H, view.W}));
    float* const data = logits.mutable_data();
    const Exclusive one(held_);
    {
      const py::gil_scoped_release release;
      in_calls(view.B, [&](std::int64_t first, std::int64_t count) {
        session_->logits({view.data + first * pixels * 3, count, view.H, view.W}, data + first * K * pixels);
        require_finite(data + first * K * pixels, count * K * pixels, "logits");
      });
    }
    return logits;
  }

  py::object run_async(const py::object& images, const py::object& out, const py::object& stream) {
    const std::uintptr_t number = stream_of(stream);
    const Memory input = on_device(images, "images", kImages, number);
    const ImagesView view = pixels_of(input, kImages);
    const Memory labels = on_device(out, "out", wanted_labels(input, view), number);
    require_labels(labels, input, view);
    for (const Memory* const memory : {&input, &labels}) {
      if (memory->device != -1 && memory->device != device_) {
        throw InputError(memory->name + ": lies on GPU " + std::to_string(memory->device) +
                         ", and this engine runs on GPU " + std::to_string(device_) + "; copy it there");
      }
    }
    const Exclusive one(held_);
    {
      const py::gil_scoped_release release;
      void* const handle = reinterpret_cast<void*>(number);  // NOLINT(performance-no-int-to-ptr): as Python has it
      session_->enqueue(view, labels.data, handle);
    }
    return out;
  }

 private:
  static Session make(const Engine& engine, const SessionOptions& options) {
    const py::gil_scoped_release release;
    return Session(engine, options);
  }

  struct Labels {
    py::object object;
    void* data;
    py::object kept;  // memory of `object`
  };

  std::string wanted_labels(const Memory& input, const ImagesView& view) const {
    std::vector<std::int64_t> shape = {view.H, view.W};
    if (!single(input)) shape.insert(shape.begin(), view.B);
    return std::string(wide_ ? "int16 " : "uint8 ") + shape_text(shape);
  }

  void require_labels(const Memory& labels, const Memory& input, const ImagesView& view) const {
    const std::string wanted = wanted_labels(input, view);
    if (labels.dtype + " " + shape_text(labels.shape) != wanted) {
      throw InputError(labels.describe() + ": wanted " + wanted + " for these images");
    }
    require_contiguous(labels);
    require_writable(labels);
    const auto* const from = static_cast<const std::uint8_t*>(input.data);
    const auto* const to = static_cast<const std::uint8_t*>(labels.data);
    const std::less<const std::uint8_t*> before;
    if (before(to, from + input.bytes()) && before(from, to + labels.bytes())) {
      throw InputError("out shares memory with images: wanted memory of its own");
    }
  }

  Labels labels_for(const Memory& input, const ImagesView& view, const py::object& out) const {
    if (!out.is_none()) {
      const Memory labels = on_host(out, "out", wanted_labels(input, view));
      require_labels(labels, input, view);
      return {out, labels.data, labels.owner};
    }
    py::array labels(py::dtype(wide_ ? "int16" : "uint8"), shaped(single(input), view.B, {view.H, view.W}));
    void* const data = labels.mutable_data();
    return {labels, data, py::none()};
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
  // between them. An empty batch is the core's to refuse.
  template <class Call>
  void in_calls(std::int64_t B, const Call& call) {
    const std::int64_t most = std::max<std::int64_t>(session_->engine().manifest().batch.max, 1);
    const std::int64_t calls = std::max<std::int64_t>((B + most - 1) / most, 1);
    for (std::int64_t i = 0; i < calls; ++i) {
      if (i != 0) check_signals();
      const std::int64_t first = B * i / calls;
      call(first, B * (i + 1) / calls - first);
    }
  }

  template <class View>
  py::array_t<float> masks_of(bool single, const View& view, std::int64_t values) {
    const Manifest& manifest = session_->engine().manifest();
    const std::int64_t P = manifest.patch_size, h = (view.H + P - 1) / P, w = (view.W + P - 1) / P;
    py::array_t<float> masks(shaped(single, view.B, {manifest.K(), h, w}));
    float* const data = masks.mutable_data();
    const std::int64_t each = manifest.K() * h * w;
    const Exclusive one(held_);
    {
      const py::gil_scoped_release release;
      in_calls(view.B, [&](std::int64_t first, std::int64_t count) {
        const MasksView made = session_->masks(View{view.data + first * values, count, view.H, view.W});
        if (made.B * made.K * made.h * made.w != count * each) throw RunError("masks: of another shape than promised");
        require_finite(made.data, count * each, "masks");
        std::copy_n(made.data, count * each, data + first * each);
      });
    }
    return masks;
  }

  py::object owner_;
  int device_;
  FreedWithoutGil<Session> session_;
  bool wide_;  // labels are int16
  std::atomic_flag held_ = ATOMIC_FLAG_INIT;
};

std::unique_ptr<PySession> open(const py::object& engine, int threads, bool graphs, bool shared_workspace) {
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
written.)")
      .def(py::init(&open), py::arg("engine"), py::kw_only(), py::arg("threads") = 0, py::arg("graphs") = true,
           py::arg("shared_workspace") = false)
      .def_property_readonly("engine", &PySession::engine, "The engine this session is of.")
      .def("run", &PySession::run, py::arg("images"), py::arg("out") = py::none(),
           R"(Labels of images: uint8 RGB [B, H, W, 3] -> uint8 [B, H, W] (int16 when K > 256); [H, W, 3] -> [H, W].

Of a size the engine takes, and any number of them: more than it takes at once go in several calls. out: memory for the
labels, which is written and returned; None makes a NumPy array.
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
default one. Raises InputError, and Unavailable where the engine runs on the CPU.)")
      .def("describe", &PySession::describe,
           "The engine's facts; on a GPU also why this session replays no CUDA graphs, where it does not.")
      .def("__repr__", [](const PySession& self) {
        return "<segmenter_trt.Session of " + py::repr(self.engine()).cast<std::string>() + ">";
      });
}

}  // namespace segmenter_trt::bindings
