// A backend with a network of a few lines, as a library that is opened: what a session does around a network is tested
// with it. Behaviour is chosen by the words in the manifest's model name.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "backend.h"

#ifndef FAKE_ABI
#define FAKE_ABI segmenter_trt::kBackendAbi
#endif

namespace segmenter_trt {
namespace {

bool has(const Manifest& manifest, const char* word) { return manifest.model.find(word) != std::string::npos; }

// Class k scores highest in patches whose mean red is near 10 k; each class also leans towards one side, so that no two
// pixels of a patch score the same.
class FakeRunner final : public Runner {
 public:
  explicit FakeRunner(const Manifest& manifest) : manifest_(manifest) {}

  void* stage(const ImageShape& shape) override {
    const auto elements = static_cast<std::size_t>(shape.B * shape.H * shape.W * 3);
    if (staged_.size() < elements) staged_.resize(elements);
    return staged_.data();
  }

  HostOutputs run(const ImageShape& shape, const void* input, Wanted wanted) override {
    if (has(manifest_, "fails")) throw RunError("out of fuel");
    const std::int64_t P = manifest_.patch_size;
    const MasksView view = {nullptr, shape.B, manifest_.K(), (shape.H + P - 1) / P, (shape.W + P - 1) / P};
    masks_.resize(static_cast<std::size_t>(view.B * view.K * view.h * view.w));
    for (std::int64_t b = 0; b < view.B; ++b) {
      for (std::int64_t y = 0; y < view.h; ++y) {
        for (std::int64_t x = 0; x < view.w; ++x) score(shape, input, view, b, y, x);
      }
    }
    if (has(manifest_, "broken")) masks_.back() = std::numeric_limits<float>::quiet_NaN();
    HostOutputs outputs = {view, nullptr};
    outputs.masks.data = masks_.data();
    if (has(manifest_, "other classes")) --outputs.masks.K;
    if (has(manifest_, "other grid")) --outputs.masks.h;
    if (wanted == Wanted::labels) {
      labels_.assign(static_cast<std::size_t>(shape.B * shape.H * shape.W), 3);
      outputs.labels = labels_.data();
    }
    return outputs;
  }

  void enqueue(const ImageShape& shape, const void*, void* device_labels, void* stream) override {
    static_cast<std::int64_t*>(device_labels)[0] = shape.H;
    *static_cast<bool*>(stream) = true;
  }

  std::string no_graphs() const override { return "a fake has none"; }

 private:
  float red(const ImageShape& shape, const void* input, std::int64_t b, std::int64_t y, std::int64_t x) const {
    if (manifest_.input == Input::pixels) {
      return static_cast<const std::uint8_t*>(input)[((b * shape.H + y) * shape.W + x) * 3];
    }
    return static_cast<const float*>(input)[(b * 3 * shape.H + y) * shape.W + x];
  }

  void score(const ImageShape& shape, const void* input, const MasksView& view, std::int64_t b, std::int64_t y,
             std::int64_t x) {
    const std::int64_t P = manifest_.patch_size;
    float sum = 0;
    float pixels = 0;
    for (std::int64_t i = y * P; i < std::min((y + 1) * P, shape.H); ++i) {
      for (std::int64_t j = x * P; j < std::min((x + 1) * P, shape.W); ++j) sum += red(shape, input, b, i, j), ++pixels;
    }
    for (std::int64_t k = 0; k < view.K; ++k) {
      const float distance = std::abs(sum / pixels - 10.0f * static_cast<float>(k));
      const float lean = 0.37f * std::sin(static_cast<float>(k * 7 + y * 3 + x * 5));
      masks_[static_cast<std::size_t>(((b * view.K + k) * view.h + y) * view.w + x)] = lean - distance;
    }
  }

  const Manifest& manifest_;
  std::vector<float> staged_, masks_;
  std::vector<std::uint8_t> labels_;
};

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(const BackendRequest& request) : manifest_(request.manifest) {
    if (has(manifest_, "absent")) throw Unavailable("no GPU here; use the ONNX");
  }

  Input input() const noexcept override { return manifest_.input; }
  bool gives_labels() const noexcept override { return has(manifest_, "labels"); }

  Description describe() const override {
    Description facts = {};
    facts.engine = "tensorrt";
    facts.runtime = "fake 1";
    facts.device = "nothing";
    return facts;
  }

  std::unique_ptr<Runner> make_runner(const SessionOptions&) const override {
    return std::make_unique<FakeRunner>(manifest_);
  }

 private:
  const Manifest manifest_;
};

std::unique_ptr<Backend> make(const BackendRequest& request) { return std::make_unique<FakeBackend>(request); }

}  // namespace
}  // namespace segmenter_trt

extern "C" __attribute__((visibility("default"))) const segmenter_trt::BackendModule* segmenter_trt_backend_module() {
  static const segmenter_trt::BackendModule module = {FAKE_ABI, segmenter_trt::make};
  return &module;
}
