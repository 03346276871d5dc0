// The C API: opaque handles around Engine and Session, and every exception turned into a status.
#include "segmenter_trt/c_api.h"

#include <atomic>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "exclusive.h"
#include "segmenter_trt/engine.h"
#include "segmenter_trt/errors.h"
#include "segmenter_trt/resize.h"
#include "segmenter_trt/session.h"
#include "segmenter_trt/sliding_window.h"
#include "segmenter_trt/version.h"

namespace trt = segmenter_trt;

struct segmenter_trt_engine {
  trt::Engine engine;
  trt::Description facts;
};

struct segmenter_trt_session {
  trt::Session session;
  std::atomic_flag held = ATOMIC_FLAG_INIT;
};

namespace {

// The longest error a thread keeps, in memory of its own: telling of a lack of memory must not need any.
constexpr std::size_t kLongest = 1024;
thread_local char last_error[kLongest] = "";

segmenter_trt_status failed(segmenter_trt_status status, const char* message) noexcept {
  std::strncpy(last_error, message, kLongest - 1);
  last_error[kLongest - 1] = '\0';
  return status;
}

// `call`, with no exception let past.
template <class Call>
segmenter_trt_status guarded(const Call& call) noexcept {
  try {
    call();
    return SEGMENTER_TRT_OK;
  } catch (const trt::ManifestError& error) {
    return failed(SEGMENTER_TRT_MANIFEST_ERROR, error.what());
  } catch (const trt::ArtifactError& error) {
    return failed(SEGMENTER_TRT_ARTIFACT_ERROR, error.what());
  } catch (const trt::Unavailable& error) {
    return failed(SEGMENTER_TRT_UNAVAILABLE, error.what());
  } catch (const trt::InputError& error) {
    return failed(SEGMENTER_TRT_INPUT_ERROR, error.what());
  } catch (const trt::RunError& error) {
    return failed(SEGMENTER_TRT_RUN_ERROR, error.what());
  } catch (const std::invalid_argument& error) {  // of the routines
    return failed(SEGMENTER_TRT_INPUT_ERROR, error.what());
  } catch (const std::bad_alloc&) {
    return failed(SEGMENTER_TRT_NO_MEMORY, "not enough memory");
  } catch (const std::exception& error) {
    return failed(SEGMENTER_TRT_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(SEGMENTER_TRT_INTERNAL_ERROR, "an exception of an unknown type");
  }
}

template <class Pointer>
void require(const Pointer* pointer, const char* name) {
  if (pointer == nullptr) throw trt::InputError(std::string(name) + " is NULL: wanted its address");
}

// A caller's structure at its own size, the fields it does not know at zero.
template <class Options>
Options options_of(const Options* given, const char* name) {
  Options options = {};
  if (given == nullptr) return options;
  if (given->size < sizeof(given->size) || given->size > sizeof(Options)) {
    throw trt::InputError(std::string(name) + ".size is " + std::to_string(given->size) + ": wanted sizeof(" + name +
                          "), at most " + std::to_string(sizeof(Options)) + "; is the library older than its header?");
  }
  std::memcpy(&options, given, given->size);
  return options;
}

std::string text(const char* given) { return given == nullptr ? "" : given; }

std::int64_t label_bytes(const trt::Manifest& manifest) { return manifest.K() <= 256 ? 1 : 2; }

void require_bytes(const char* name, std::initializer_list<std::int64_t> sides, std::int64_t item, std::size_t bytes) {
  std::int64_t wanted = item;
  std::string shape;
  for (const std::int64_t side : sides) {
    // sides that are none are told of by name in the call itself
    if (side < 0 || __builtin_mul_overflow(wanted, side, &wanted)) {
      throw trt::InputError(std::string(name) + ": a side of " + std::to_string(side) + " cannot be");
    }
    shape += (shape.empty() ? "" : ", ") + std::to_string(side);
  }
  if (static_cast<std::size_t>(wanted) != bytes) {
    throw trt::InputError(std::string(name) + " of " + std::to_string(bytes) + " bytes: wanted " +
                          std::to_string(wanted) + ", for [" + shape + "] of " + std::to_string(item) + " bytes each");
  }
}

// `call` with a view of the labels, as the type the engine's have.
template <class Call>
void with_labels(const trt::Session& session, void* labels, trt::Size size, const Call& call) {
  if (label_bytes(session.engine().manifest()) == 1) {
    call(trt::LabelsView<std::uint8_t>{static_cast<std::uint8_t*>(labels), size});
  } else {
    call(trt::LabelsView<std::int16_t>{static_cast<std::int16_t*>(labels), size});
  }
}

void copy(const trt::Range& range, std::int64_t to[3]) {
  to[0] = range.min;
  to[1] = range.opt;
  to[2] = range.max;
}

}  // namespace

const char* segmenter_trt_version(void) { return trt::build_info().version; }

int32_t segmenter_trt_c_abi(void) { return SEGMENTER_TRT_C_ABI; }

const char* segmenter_trt_last_error(void) { return last_error; }

segmenter_trt_status segmenter_trt_engine_open(const char* artifact, const segmenter_trt_engine_options* options,
                                               segmenter_trt_engine** engine) {
  return guarded([&] {
    require(engine, "engine");
    *engine = nullptr;
    require(artifact, "artifact");
    const auto given = options_of(options, "segmenter_trt_engine_options");
    trt::Engine opened = trt::Engine::open(artifact, {.backend = text(given.backend),
                                                      .precision = text(given.precision),
                                                      .threads = given.threads,
                                                      .streams = given.streams == 0 ? 1 : given.streams,
                                                      .device = given.device,
                                                      .runtime = text(given.runtime),
                                                      .plugins = text(given.plugins),
                                                      .require_verified = given.require_verified != 0});
    trt::Description facts = opened.describe();
    *engine = new segmenter_trt_engine{std::move(opened), std::move(facts)};
  });
}

void segmenter_trt_engine_close(segmenter_trt_engine* engine) { delete engine; }

segmenter_trt_status segmenter_trt_engine_facts(const segmenter_trt_engine* engine, segmenter_trt_facts* facts) {
  return guarded([&] {
    require(engine, "engine");
    require(facts, "facts");
    const std::size_t size = options_of(facts, "segmenter_trt_facts").size;
    const trt::Manifest& manifest = engine->engine.manifest();
    segmenter_trt_facts found = {};
    found.size = size;
    copy(engine->facts.height, found.height);
    copy(engine->facts.width, found.width);
    copy(engine->facts.batch, found.batch);
    found.classes = manifest.K();
    found.patch_size = manifest.patch_size;
    found.label_bytes = label_bytes(manifest);
    found.engine = engine->facts.engine.c_str();
    found.runtime = engine->facts.runtime.c_str();
    found.device = engine->facts.device.c_str();
    found.precision = engine->facts.precision.c_str();
    found.model = engine->facts.model.c_str();
    found.warning = engine->facts.warning.c_str();
    std::memcpy(facts, &found, size);
  });
}

segmenter_trt_status segmenter_trt_engine_class(const segmenter_trt_engine* engine, int64_t index, const char** name,
                                                uint8_t colour[3]) {
  return guarded([&] {
    require(engine, "engine");
    const trt::Manifest& manifest = engine->engine.manifest();
    if (index < 0 || index >= manifest.K()) {
      throw trt::InputError("class " + std::to_string(index) + ": wanted 0 to " + std::to_string(manifest.K() - 1));
    }
    const auto k = static_cast<std::size_t>(index);
    if (name != nullptr) *name = manifest.classes[k].c_str();
    if (colour != nullptr) std::memcpy(colour, manifest.palette[k].data(), 3);
  });
}

segmenter_trt_status segmenter_trt_session_open(const segmenter_trt_engine* engine,
                                                const segmenter_trt_session_options* options,
                                                segmenter_trt_session** session) {
  return guarded([&] {
    require(session, "session");
    *session = nullptr;
    require(engine, "engine");
    const auto given = options_of(options, "segmenter_trt_session_options");
    *session = new segmenter_trt_session{trt::Session(
        engine->engine,
        {.threads = given.threads, .graphs = given.no_graphs == 0, .shared_workspace = given.shared_workspace != 0})};
  });
}

void segmenter_trt_session_close(segmenter_trt_session* session) { delete session; }

segmenter_trt_status segmenter_trt_session_run(segmenter_trt_session* session, const uint8_t* pixels, int64_t batch,
                                               int64_t height, int64_t width, void* labels, size_t bytes) {
  return guarded([&] {
    require(session, "session");
    require(pixels, "pixels");
    require(static_cast<const char*>(labels), "labels");
    require_bytes("labels", {batch, height, width}, label_bytes(session->session.engine().manifest()), bytes);
    const trt::bindings::Exclusive one(session->held);
    with_labels(session->session, labels, {height, width}, [&](const auto& to) {
      session->session.run(trt::ImagesView{pixels, batch, height, width}, to);
    });
  });
}

segmenter_trt_status segmenter_trt_session_run_resized(segmenter_trt_session* session, const uint8_t* pixels,
                                                       int64_t batch, int64_t height, int64_t width, void* labels,
                                                       int64_t to_height, int64_t to_width, size_t bytes) {
  return guarded([&] {
    require(session, "session");
    require(pixels, "pixels");
    require(static_cast<const char*>(labels), "labels");
    require_bytes("labels", {batch, to_height, to_width}, label_bytes(session->session.engine().manifest()), bytes);
    const trt::bindings::Exclusive one(session->held);
    trt::check_sizes(trt::ImagesView{pixels, batch, height, width}, trt::Size{to_height, to_width});
    std::vector<trt::ImagesView> pictures;
    for (std::int64_t b = 0; b < batch; ++b) pictures.push_back({pixels + b * height * width * 3, 1, height, width});
    with_labels(session->session, labels, {to_height, to_width},
                [&](const auto& to) { session->session.run_resized(pictures, to); });
  });
}

segmenter_trt_status segmenter_trt_session_sliding_window(segmenter_trt_session* session, const uint8_t* pixels,
                                                          int64_t height, int64_t width, int64_t window, int64_t stride,
                                                          int64_t window_batch, void* labels, size_t bytes) {
  return guarded([&] {
    require(session, "session");
    require(pixels, "pixels");
    require(static_cast<const char*>(labels), "labels");
    require_bytes("labels", {height, width}, label_bytes(session->session.engine().manifest()), bytes);
    const trt::bindings::Exclusive one(session->held);
    const trt::WindowOptions options = {
        .window = window, .stride = stride, .batch = window_batch == 0 ? 1 : window_batch};
    with_labels(session->session, labels, {height, width}, [&](const auto& to) {
      trt::run_sliding_window(session->session, {pixels, 1, height, width}, to, options);
    });
  });
}

segmenter_trt_status segmenter_trt_session_masks(segmenter_trt_session* session, const uint8_t* pixels, int64_t batch,
                                                 int64_t height, int64_t width, const float** masks, int64_t shape[4]) {
  return guarded([&] {
    require(session, "session");
    require(pixels, "pixels");
    require(masks, "masks");
    require(shape, "shape");
    const trt::bindings::Exclusive one(session->held);
    const trt::MasksView made = session->session.masks(trt::ImagesView{pixels, batch, height, width});
    *masks = made.data;
    shape[0] = made.B;
    shape[1] = made.K;
    shape[2] = made.h;
    shape[3] = made.w;
  });
}

segmenter_trt_status segmenter_trt_session_logits(segmenter_trt_session* session, const uint8_t* pixels, int64_t batch,
                                                  int64_t height, int64_t width, float* logits, size_t bytes) {
  return guarded([&] {
    require(session, "session");
    require(pixels, "pixels");
    require(logits, "logits");
    const trt::Manifest& manifest = session->session.engine().manifest();
    require_bytes("logits", {batch, manifest.K(), height, width}, sizeof(float), bytes);
    const trt::bindings::Exclusive one(session->held);
    session->session.logits({pixels, batch, height, width}, logits);
  });
}

segmenter_trt_status segmenter_trt_session_enqueue(segmenter_trt_session* session, const void* device_pixels,
                                                   int64_t batch, int64_t height, int64_t width, void* device_labels,
                                                   size_t bytes, void* stream) {
  return guarded([&] {
    require(session, "session");
    require(static_cast<const char*>(device_pixels), "device_pixels");
    require(static_cast<const char*>(device_labels), "device_labels");
    require_bytes("labels", {batch, height, width}, label_bytes(session->session.engine().manifest()), bytes);
    const trt::bindings::Exclusive one(session->held);
    session->session.enqueue({static_cast<const uint8_t*>(device_pixels), batch, height, width}, device_labels, stream);
  });
}

segmenter_trt_status segmenter_trt_resize(const uint8_t* pixels, int64_t batch, int64_t height, int64_t width,
                                          uint8_t* resized, int64_t to_height, int64_t to_width, int32_t threads) {
  return guarded([&] {
    require(pixels, "pixels");
    require(resized, "resized");
    trt::resize({pixels, batch, height, width}, {resized, to_height, to_width}, threads);
  });
}
