// What a runtime is to engines and sessions: the seam between them and OpenVINO, TensorRT, ...
//
// A backend may be a shared library of its own, opened when an engine first asks for it. It then exports one function,
//
//   extern "C" const segmenter_trt::BackendModule* segmenter_trt_backend_module();
//
// declared below. Errors are thrown across this seam, as the types of segmenter_trt/errors.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "segmenter_trt/engine.h"
#include "segmenter_trt/errors.h"
#include "segmenter_trt/manifest.h"
#include "segmenter_trt/normalize.h"
#include "segmenter_trt/session.h"
#include "segmenter_trt/upsample_argmax.h"

namespace segmenter_trt {

// What a backend is made of. All of it has been checked: the manifest is one, and the bytes have its hash.
struct BackendRequest {
  const Manifest& manifest;
  const std::filesystem::path& artifact;  // for messages: what counts is `bytes`
  std::span<const std::byte> bytes;       // of the artifact; gone when the backend is made
  const EngineOptions& options;           // threads is definite, runtime is as the caller gave it
};

// Number and size of the images, as the caller has them.
struct ImageShape {
  std::int64_t B, H, W;

  bool operator==(const ImageShape&) const = default;
};

enum class Wanted {
  masks,
  labels,  // and masks too where the graph gives them, for the session to see that scores are numbers
};

// On the host, in memory of the runner's, until its next call. `data` is null for what was not asked for or is not
// there.
struct HostOutputs {
  MasksView masks;     // [B, K, h, w] on the patch grid of the padded image
  const void* labels;  // [B, H, W], uint8 when K <= 256 and else int16
};

// A picture, the windows it is labelled through, and what the masks of one are; held against the manifest.
struct WindowGrid {
  std::int64_t H, W;            // of the picture, each at least the window's
  std::int64_t window, stride;  // pixels; the last window of a side is flush with its end
  std::int64_t batch, least;    // windows in one call of the network; fewer than `least` it does not take
  std::int64_t K, h, w;         // of a window's masks
  Size padded;                  // pixels they stand for: a window in whole patches

  std::int64_t rows() const noexcept { return (H - window + stride - 1) / stride + 1; }
  std::int64_t columns() const noexcept { return (W - window + stride - 1) / stride + 1; }
};

// The network for one session: one thread at a time. Calls of a shape seen before allocate nothing.
class Runner {
 public:
  virtual ~Runner() = default;

  // Memory of the runner's for input of this shape, as Backend::input says, that it reads fastest; until a call with
  // another shape.
  virtual void* stage(const ImageShape& shape) = 0;

  // `input` is what `stage` gave, the caller's own memory, or null after `place_resized` of every image. Shapes have
  // been held against the manifest. Throws RunError.
  virtual HostOutputs run(const ImageShape& shape, const void* input, Wanted wanted) = 0;

  // uint8 [B, H, W, 3] on the device to labels there, on a CUstream, not waited for.
  virtual void enqueue(const ImageShape& shape, const void* device_pixels, void* device_labels, void* stream) = 0;

  // What follows is left to the caller where it is not overridden, as it is on the CPU. All throw RunError.

  // Memory of the runner's for a picture, uint8 RGB [H, W, 3], for `label_windows`; null leaves it to the caller.
  virtual void* stage_picture(const WindowGrid&) { return nullptr; }

  // Labels [H, W] of the staged picture, bytes for up to 256 classes and else int16. `between` is called before every
  // call of the network but the first; it may throw, and run other sessions. False, with nothing written, where a score
  // is no number, masks are others than the grid says, or memory is short: the caller then runs the windows itself, and
  // finds what is wrong.
  virtual bool label_windows(const WindowGrid&, const std::function<void()>& /*between*/, void* /*labels*/) {
    return false;
  }

  // Makes a picture, uint8 RGB [1, H, W, 3], image `b` of the next `run` of this shape, resized as `resize` does; false
  // leaves all images to the caller, also those placed before.
  virtual bool place_resized(const ImageShape&, std::int64_t /*b*/, const ImagesView& /*picture*/) { return false; }

  // Description::no_graphs, asked from any thread.
  virtual std::string no_graphs() const { return {}; }

  // Why the last picture was left to the caller that the backend says the GPU does: windows and resizing, each empty
  // where it was not. Asked from any thread.
  virtual std::string windows_left() const { return {}; }
  virtual std::string resizing_left() const { return {}; }
};

// One per engine: immutable, and any number of threads may call it.
class Backend {
 public:
  virtual ~Backend() = default;

  // What runners are given: the manifest's input, or pixels where the backend normalises them itself.
  virtual Input input() const noexcept = 0;

  // Whether runners give labels; where not, sessions make them of the masks.
  virtual bool gives_labels() const noexcept = 0;

  // engine, runtime, device, floats, warning, threads, and of a GPU windows_by and resized_by; the rest is the engine's
  // and the session's to fill in.
  virtual Description describe() const = 0;

  // The runner may use the backend, which outlives it.
  virtual std::unique_ptr<Runner> make_runner(const SessionOptions& options) const = 0;
};

#if defined(_LIBCPP_VERSION)
#define SEGMENTER_TRT_STANDARD_LIBRARY "libc++"
#elif defined(_GLIBCXX_USE_CXX11_ABI) && _GLIBCXX_USE_CXX11_ABI
#define SEGMENTER_TRT_STANDARD_LIBRARY "libstdc++11"
#else
#define SEGMENTER_TRT_STANDARD_LIBRARY "libstdc++"
#endif

// Libraries with the same one fit each other: the seam's number, raised when this header or a structure in it changes,
// and the standard library, whose strings and vectors cross the seam.
inline constexpr char kBackendAbi[] = "segmenter_trt backend 5 " SEGMENTER_TRT_STANDARD_LIBRARY;

// `abi` is the library's kBackendAbi, and is compared before anything else is used.
struct BackendModule {
  const char* abi;
  std::unique_ptr<Backend> (*make)(const BackendRequest& request);
};

inline constexpr char kBackendModuleFunction[] = "segmenter_trt_backend_module";
using BackendModuleFunction = const BackendModule*();

// The backend for a request, which names it or whose manifest settles it. Throws Unavailable where this machine or this
// build lacks it, and what the backend throws.
std::unique_ptr<Backend> make_backend(const BackendRequest& request);

// Whether a backend for plans lies where they are looked for, but for the system's own folders.
bool has_tensorrt() noexcept;

}  // namespace segmenter_trt

extern "C" const segmenter_trt::BackendModule* segmenter_trt_backend_module();
