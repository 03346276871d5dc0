// A backend for tests, built as libsegmenter_trt_tensorrt.so: the label of a pixel is its red value.
//
// A first pixel whose green is not 0 makes `run` take that many hundredths of a second, and freeing the session as
// many. `enqueue` reads and writes memory of the host as if it were the device's, and leaves the low byte of the stream
// in the first label. `red_backends` and `red_runners` are how many are alive.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "backend.h"

namespace {

using namespace segmenter_trt;

std::atomic<int> backends = 0, runners = 0;

void label(const ImageShape& shape, const std::uint8_t* pixels, std::uint8_t* labels) {
  for (std::int64_t i = 0; i < shape.B * shape.H * shape.W; ++i) labels[i] = pixels[3 * i];
}

class FakeRunner : public Runner {
 public:
  FakeRunner() { ++runners; }
  ~FakeRunner() override {
    std::this_thread::sleep_for(last_);
    --runners;
  }

  void* stage(const ImageShape& shape) override {
    pixels_.resize(static_cast<std::size_t>(shape.B * shape.H * shape.W * 3));
    return pixels_.data();
  }

  HostOutputs run(const ImageShape& shape, const void* input, Wanted) override {
    const auto* const pixels = static_cast<const std::uint8_t*>(input);
    last_ = std::chrono::milliseconds(10 * pixels[1]);
    std::this_thread::sleep_for(last_);
    labels_.resize(static_cast<std::size_t>(shape.B * shape.H * shape.W));
    label(shape, pixels, labels_.data());
    return {{}, labels_.data()};
  }

  void enqueue(const ImageShape& shape, const void* device_pixels, void* device_labels, void* stream) override {
    auto* const labels = static_cast<std::uint8_t*>(device_labels);
    label(shape, static_cast<const std::uint8_t*>(device_pixels), labels);
    labels[0] = static_cast<std::uint8_t>(reinterpret_cast<std::uintptr_t>(stream));
  }

 private:
  std::vector<std::uint8_t> pixels_, labels_;
  std::chrono::milliseconds last_{0};
};

class FakeBackend : public Backend {
 public:
  FakeBackend() { ++backends; }
  ~FakeBackend() override { --backends; }

  Input input() const noexcept override { return Input::pixels; }
  bool gives_labels() const noexcept override { return true; }
  Description describe() const override {
    Description facts = {};
    facts.engine = "tensorrt";
    facts.runtime = "fake 1";
    facts.device = "fake GPU";
    return facts;
  }
  std::unique_ptr<Runner> make_runner(const SessionOptions&) const override { return std::make_unique<FakeRunner>(); }
};

std::unique_ptr<Backend> make(const BackendRequest&) { return std::make_unique<FakeBackend>(); }

constexpr BackendModule kModule = {kBackendAbi, make};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int red_backends() { return backends; }
EXPORTED int red_runners() { return runners; }
EXPORTED const BackendModule* segmenter_trt_backend_module() { return &kModule; }
