#include "openvino_backend.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cpu.h"
#include "onnx_outputs.h"
#include "openvino_api.h"
#include "verified.h"

namespace segmenter_trt {
namespace {

constexpr char kDevice[] = "CPU";
constexpr char kMasks[] = "masks";

// An object of OpenVINO's, given back when it goes.
template <class Object>
class Owned {
 public:
  using Free = void (*)(Object*);

  explicit Owned(Free free) : free_(free) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { reset(); }

  Object* get() const { return object_; }

  // Where a function that makes such an object puts it.
  Object** made() {
    reset();
    return &object_;
  }

  void reset() {
    if (object_ != nullptr) free_(std::exchange(object_, nullptr));
  }

 private:
  Free free_;
  Object* object_ = nullptr;
};

std::array<std::int64_t, 4> dimensions(const ImageShape& shape, Input input) {
  if (input == Input::pixels) return {shape.B, shape.H, shape.W, 3};
  return {shape.B, 3, shape.H, shape.W};
}

// What the manifest says of the network's input, in its order.
std::array<Range, 4> promised_sides(const Manifest& manifest) {
  constexpr Range kChannels = {3, 3, 3};
  if (manifest.input == Input::pixels) return {manifest.batch, manifest.height, manifest.width, kChannels};
  return {manifest.batch, kChannels, manifest.height, manifest.width};
}

// "[1 to 8, 3, 64, any]"
std::string text_of(const std::vector<ov_dimension>& sides) {
  std::string text;
  for (const auto& [min, max] : sides) {
    text += (text.empty() ? "[" : ", ") + (max < 0 ? "any" : std::to_string(min));
    if (max > min) text += " to " + std::to_string(max);
  }
  return text + "]";
}

// A compiled graph, shared by the sessions of an engine.
struct Compiled {
  Owned<ov_compiled_model> model;
  // A call has failed: OpenVINO leaves some layers at its shapes and others at those before, for every request.
  std::atomic<bool> failed = false;
};

class OpenVinoRunner final : public Runner {
 public:
  OpenVinoRunner(const OpenVino& api, Compiled& compiled, const Manifest& manifest)
      : api_(api),
        compiled_(compiled),
        manifest_(manifest),
        request_(api.infer_request_free),
        staged_(api.tensor_free),
        lent_(api.tensor_free),
        output_(api.tensor_free) {
    require_request();
    check(api_.tensor_get_element_type(staged_.get(), &element_type_));
  }

  // The runtime's own memory: what is written there is where the network reads it.
  void* stage(const ImageShape& shape) override {
    if (shape != staged_shape_) {
      require_request();
      staged_shape_ = {};
      staged_data_ = nullptr;
      used_ = nullptr;
      auto sides = dimensions(shape, manifest_.input);
      if (api_.tensor_set_shape(staged_.get(), {4, sides.data()}) != 0) {
        const RunError error = failure();
        // it has freed the memory before, and keeps its address
        request_.reset();
        throw error;
      }
      std::size_t bytes = 0;
      check(api_.tensor_get_byte_size(staged_.get(), &bytes));
      const std::size_t wanted = input_bytes(shape);
      if (bytes != wanted) {
        throw RunError("its input takes " + std::to_string(bytes) + " bytes, wanted " + std::to_string(wanted) +
                       "; the graph is not what its manifest says, export it again");
      }
      check(api_.tensor_data(staged_.get(), &staged_data_));
      staged_shape_ = shape;
    }
    return staged_data_;
  }

  HostOutputs run(const ImageShape& shape, const void* input, Wanted) override {
    if (compiled_.failed) {
      throw RunError("OpenVINO: a call failed before and has left its graph half changed; open the engine again");
    }
    use(shape, input);
    int status = api_.infer_request_start_async(request_.get());
    if (status == 0) status = api_.infer_request_wait(request_.get());
    if (status != 0) compiled_.failed = true;
    check(status);
    check(api_.infer_request_get_output_tensor_by_index(request_.get(), 0, output_.made()));
    return {checked_masks(shape), nullptr};
  }

  void enqueue(const ImageShape&, const void*, void*, void*) override {
    throw Unavailable(
        "engine openvino: runs on the CPU and takes nothing that lies on a GPU; use run, or build a plan");
  }

 private:
  RunError failure() const { return RunError("OpenVINO: " + api_.told()); }

  void check(int status) const {
    if (status != 0) throw failure();
  }

  // Makes a request where there is none, at first or any more.
  void require_request() {
    if (request_.get() != nullptr) return;
    check(api_.compiled_model_create_infer_request(compiled_.model.get(), request_.made()));
    check(api_.infer_request_get_input_tensor_by_index(request_.get(), 0, staged_.made()));
  }

  std::size_t input_bytes(const ImageShape& shape) const {
    const std::size_t element = manifest_.input == Input::pixels ? 1 : sizeof(float);
    return static_cast<std::size_t>(shape.B * shape.H * shape.W) * 3 * element;
  }

  // Makes `input` what the request reads, where it lies.
  void use(const ImageShape& shape, const void* input) {
    const bool own = input == staged_data_;
    if (input == used_ && shape == used_shape_) return;
    require_request();
    used_ = nullptr;
    if (!own) {
      auto sides = dimensions(shape, manifest_.input);
      // the runtime only reads inputs, though its interface does not say so
      void* const memory = const_cast<void*>(input);
      check(api_.tensor_create_from_host_ptr(element_type_, {4, sides.data()}, memory, lent_.made()));
    }
    check(api_.infer_request_set_input_tensor_by_index(request_.get(), 0, own ? staged_.get() : lent_.get()));
    used_ = input;
    used_shape_ = shape;
  }

  MasksView checked_masks(const ImageShape& shape) const {
    const std::int64_t P = manifest_.patch_size;
    const MasksView masks = {nullptr, shape.B, manifest_.K(), (shape.H + P - 1) / P, (shape.W + P - 1) / P};
    ov_shape found = {};
    check(api_.tensor_get_shape(output_.get(), &found));
    const bool fits = found.rank == 4 && found.dims[0] == masks.B && found.dims[1] == masks.K &&
                      found.dims[2] == masks.h && found.dims[3] == masks.w;
    api_.shape_free(&found);
    std::size_t bytes = 0;
    check(api_.tensor_get_byte_size(output_.get(), &bytes));
    if (!fits || bytes != static_cast<std::size_t>(masks.B * masks.K * masks.h * masks.w) * sizeof(float)) {
      throw RunError("its masks are not float32 [" + std::to_string(masks.B) + ", " + std::to_string(masks.K) + ", " +
                     std::to_string(masks.h) + ", " + std::to_string(masks.w) +
                     "]; the graph is not what its manifest says, export it again");
    }
    void* data = nullptr;
    check(api_.tensor_data(output_.get(), &data));
    return {static_cast<const float*>(data), masks.B, masks.K, masks.h, masks.w};
  }

  const OpenVino& api_;
  Compiled& compiled_;
  const Manifest& manifest_;
  Owned<ov_infer_request> request_;
  Owned<ov_tensor> staged_;  // the request's own
  Owned<ov_tensor> lent_;    // around the caller's memory
  Owned<ov_tensor> output_;
  int element_type_ = 0;
  ImageShape staged_shape_ = {};
  void* staged_data_ = nullptr;
  const void* used_ = nullptr;
  ImageShape used_shape_ = {};
};

class OpenVinoBackend final : public Backend {
 public:
  explicit OpenVinoBackend(const BackendRequest& request)
      : api_(request.options.runtime),
        manifest_(request.manifest),
        threads_(request.options.threads),
        compiled_{Owned<ov_compiled_model>(api_.compiled_model_free)} {
    const std::string name = request.artifact.string();
    if (!manifest_.plugins.empty()) {
      throw ArtifactError(name + ": holds " + manifest_.plugins.front() +
                          ", which OpenVINO has not; export it with --lowering native");
    }
    version_ = api_.version();
    const ov_core* const core = api_.core();
    check(core == nullptr ? -1 : 0, name);
    choose_floats(request, core);

    const std::string_view bytes(reinterpret_cast<const char*>(request.bytes.data()), request.bytes.size());
    std::string cut;
    try {
      cut = keep_output(bytes, kMasks);
    } catch (const ArtifactError& error) {
      throw ArtifactError(name + ": " + error.what());
    }
    Owned<ov_model> model(api_.model_free);
    check(api_.core_read_model_from_memory_buffer(core, cut.data(), cut.size(), nullptr, model.made()), name);
    require_promised_input(model.get(), name);
    const std::string threads = std::to_string(threads_);
    const std::string streams = std::to_string(request.options.streams);
    // it keeps fewer threads than cores on the first of them, which are every process's first: the system spreads them
    const std::size_t words = threads_ < scheduled_cores() ? 10 : 8;
    check(api_.core_compile_model(core, model.get(), kDevice, words, compiled_.model.made(), "INFERENCE_NUM_THREADS",
                                  threads.c_str(), "INFERENCE_PRECISION_HINT", floats_ == "bf16" ? "bf16" : "f32",
                                  "PERFORMANCE_HINT", "LATENCY", "NUM_STREAMS", streams.c_str(), "ENABLE_CPU_PINNING",
                                  "NO"),
          name);
  }

  Input input() const noexcept override { return manifest_.input; }
  bool gives_labels() const noexcept override { return false; }

  Description describe() const override {
    Description facts = {};
    facts.engine = "openvino";
    facts.runtime = "openvino " + version_;
    facts.device = "cpu";
    facts.floats = floats_;
    facts.threads = threads_;
    if (manifest_.precision == "int8" && int8_saturates() && !passed_saturating(manifest_, "openvino-int8")) {
      facts.warning =
          "this CPU has no VNNI, so OpenVINO may overflow where large activations meet large weights; run `segmenter "
          "verify` on this machine";
    }
    return facts;
  }

  std::unique_ptr<Runner> make_runner(const SessionOptions&) const override {
    return std::make_unique<OpenVinoRunner>(api_, compiled_, manifest_);
  }

 private:
  void check(int status, const std::string& name) const {
    if (status != 0) throw ArtifactError(name + ": OpenVINO " + version_ + " cannot open it: " + api_.told());
  }

  // A side that the graph fixes is fixed to the same in the manifest; one it leaves open may be anything there.
  void require_promised_input(const ov_model* model, const std::string& name) const {
    Owned<ov_output_const_port> port(api_.output_const_port_free);
    check(api_.model_const_input_by_index(model, 0, port.made()), name);
    ov_partial_shape shape = {};
    check(api_.port_get_partial_shape(port.get(), &shape), name);
    const std::int64_t rank = shape.rank.min == shape.rank.max ? shape.rank.max : 0;
    const std::vector<ov_dimension> sides(shape.dims, shape.dims + rank);
    api_.partial_shape_free(&shape);

    std::vector<ov_dimension> promised;
    for (const Range& range : promised_sides(manifest_)) promised.push_back({range.min, range.max});
    const auto fits = [](const ov_dimension& side, const ov_dimension& said) {
      return side.min != side.max || (said.min == side.min && said.max == side.max);
    };
    if (std::equal(sides.begin(), sides.end(), promised.begin(), promised.end(), fits)) return;
    throw ArtifactError(name + ": the graph takes images " + text_of(sides) + ", its manifest says " +
                        text_of(promised) + "; export it again, which writes both");
  }

  // float32, but for an int8 graph bfloat16 where the CPU has instructions for it; or what was asked for.
  void choose_floats(const BackendRequest& request, const ov_core* core) {
    char* value = nullptr;
    check(api_.core_get_property(core, kDevice, "OPTIMIZATION_CAPABILITIES", &value), request.artifact.string());
    std::istringstream capabilities(value);
    api_.free(value);
    using Words = std::istream_iterator<std::string>;
    const bool native = std::find(Words(capabilities), Words(), "BF16") != Words();
    const std::string& wanted = request.options.precision;
    if (!wanted.empty() && wanted != "fp32" && wanted != "bf16") {
      throw InputError("precision '" + wanted + "': OpenVINO computes in fp32 or bf16 on a CPU");
    }
    if (wanted == "bf16" && !native) {
      throw Unavailable("openvino in bf16: this CPU has no bfloat16 instructions; use fp32 or int8");
    }
    floats_ = !wanted.empty() ? wanted : manifest_.precision == "int8" && native ? "bf16" : "fp32";
  }

  const OpenVino api_;
  const Manifest manifest_;
  const int threads_;
  std::string version_;
  std::string floats_;
  mutable Compiled compiled_;  // running changes it
};

}  // namespace

std::unique_ptr<Backend> make_openvino_backend(const BackendRequest& request) {
  return std::make_unique<OpenVinoBackend>(request);
}

}  // namespace segmenter_trt
