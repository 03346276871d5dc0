#include "segmenter_trt/session.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "backend.h"
#include "checks.h"
#include "device_windows.h"
#include "engine_state.h"
#include "label_plan.h"
#include "normalize_planes.h"
#include "process.h"
#include "score_rows.h"
#include "segmenter_trt/errors.h"
#include "segmenter_trt/resize.h"
#include "workers.h"

namespace segmenter_trt {
namespace {

// Shapes a session remembers what it has made for; a stream of images has one, a folder a few.
constexpr std::size_t kShapes = 8;

}  // namespace

struct Session::State {
  // How masks of one shape of images become labels, or scores.
  struct Shaped {
    ImageShape images;
    std::unique_ptr<LabelPlan> labels;
    std::unique_ptr<ScoreRows> scores;
  };

  State(const Engine& of, const SessionOptions& options)
      : engine(of),
        manifest(of.state_->manifest),
        backend(*of.state_->backend),
        name(of.state_->name),
        preprocess(affine(manifest.preprocess)),
        opener(of.state_->opener),
        threads(options.threads > 0 ? options.threads : of.state_->threads) {
    require_opener();
    runner = backend.make_runner(options);
    shapes.reserve(kShapes);
  }

  // In a child of fork() the runtime would wait for threads that there are not.
  void require_opener() const {
    if (opener.is_this()) return;
    throw RunError(name +
                   ": this process was forked from the one that opened this engine, whose threads it has not; open"
                   " engines after the fork alone, or start processes by spawn");
  }

  ImageShape checked(const void* data, std::int64_t B, std::int64_t H, std::int64_t W) const {
    if (data == nullptr) throw InputError("images that are nowhere: wanted a pointer to uint8 RGB [B, H, W, 3]");
    require_opener();
    const ImageShape shape = {B, H, W};
    check_size(H, W, manifest);
    check_batch(B, manifest.batch);
    return shape;
  }

  // Has what the runtime complains of name the engine.
  template <class Call>
  auto named(const Call& call) const {
    try {
      return call();
    } catch (const RunError& error) {
      throw RunError(name + ": " + error.what());
    }
  }

  HostOutputs infer(const ImageShape& shape, const void* input, Wanted wanted) const {
    return named([&] {
      const HostOutputs outputs = runner->run(shape, input, wanted);
      if (outputs.masks.data != nullptr) require_promised(outputs.masks, shape);
      return outputs;
    });
  }

  std::int64_t patches(std::int64_t side) const { return (side - 1) / manifest.patch_size + 1; }

  // What reads masks, and writes labels and scores of them, goes by the manifest.
  void require_promised(const MasksView& masks, const ImageShape& shape) const {
    if (masks.B == shape.B && masks.K == manifest.K() && masks.h == patches(shape.H) && masks.w == patches(shape.W)) {
      return;
    }
    throw RunError("its masks are [" + std::to_string(masks.B) + ", " + std::to_string(masks.K) + ", " +
                   std::to_string(masks.h) + ", " + std::to_string(masks.w) + "] of " + std::to_string(shape.B) +
                   " images of " + sides(shape.H, shape.W) + ", and its manifest promises others; make both again");
  }

  // Of images that were checked: what the runner is given.
  const void* input_of(const ImageShape& shape, const std::uint8_t* pixels) {
    if (backend.input() == Input::pixels) return pixels;
    auto* const planes = static_cast<float*>(staged(shape));
    normalize_planes({pixels, shape.B, shape.H, shape.W}, preprocess.scale.data(), preprocess.shift.data(),
                     {planes, shape.H, shape.W}, threads, Simd::automatic, workers);
    return planes;
  }

  HostOutputs infer(const ImagesView& pixels, Wanted wanted) {
    const ImageShape shape = checked(pixels.data, pixels.B, pixels.H, pixels.W);
    return infer(shape, input_of(shape, pixels.data), wanted);
  }

  void* staged(const ImageShape& shape) const {
    return named([&] { return runner->stage(shape); });
  }

  ImageShape checked_pictures(std::span<const ImagesView> pictures, Size size) const {
    require_opener();
    const ImageShape shape = {static_cast<std::int64_t>(pictures.size()), size.height, size.width};
    check_size(shape.H, shape.W, manifest);
    check_batch(shape.B, manifest.batch);
    for (const ImagesView& picture : pictures) {
      if (picture.data == nullptr || picture.B != 1) {
        throw InputError("pictures to resize: wanted a pointer to uint8 RGB [1, H, W, 3] for each");
      }
      try {
        check_sizes(picture, size);
      } catch (const std::invalid_argument& error) {
        throw InputError(error.what());
      }
    }
    return shape;
  }

  // What the runner is given of pictures resized; null where it has done it itself.
  const void* resized_input(const ImageShape& shape, std::span<const ImagesView> pictures) {
    const auto other = [&](const ImagesView& one) { return one.H != shape.H || one.W != shape.W; };
    if (std::any_of(pictures.begin(), pictures.end(), other) && placed(shape, pictures)) return nullptr;
    const auto bytes = static_cast<std::size_t>(shape.H * shape.W * 3);
    std::uint8_t* to = nullptr;
    if (backend.input() == Input::pixels) {
      to = static_cast<std::uint8_t*>(staged(shape));
    } else {
      colours.resize(pictures.size() * bytes);
      to = colours.data();
    }
    for (std::size_t b = 0; b < pictures.size(); ++b) resize(pictures[b], {to + b * bytes, shape.H, shape.W}, threads);
    return input_of(shape, to);
  }

  bool placed(const ImageShape& shape, std::span<const ImagesView> pictures) const {
    return named([&] {
      for (std::size_t b = 0; b < pictures.size(); ++b) {
        if (!runner->place_resized(shape, static_cast<std::int64_t>(b), pictures[b])) return false;
      }
      return true;
    });
  }

  bool label_windows(const ImagesView& pixels, void* labels, const WindowOptions& options) {
    require_opener();
    const std::int64_t side = patches(options.window), whole = side * manifest.patch_size;
    WindowGrid grid{};
    grid.H = pixels.H, grid.W = pixels.W;
    grid.window = options.window, grid.stride = options.stride;
    grid.batch = options.batch, grid.least = manifest.batch.min;
    grid.K = manifest.K(), grid.h = grid.w = side;
    grid.padded = {whole, whole};
    return named([&] {
      void* const staged = runner->stage_picture(grid);
      if (staged == nullptr) return false;
      std::memcpy(staged, pixels.data, static_cast<std::size_t>(pixels.H * pixels.W * 3));
      return runner->label_windows(grid, options.between, labels);
    });
  }

  void require_masks() const {
    if (!manifest.gives("masks")) throw InputError(name + ": gives no masks, only labels; export it again with them");
  }

  // The last one used comes first.
  Shaped& shaped(const ImageShape& images) {
    const auto same = [&](const Shaped& known) { return known.images == images; };
    auto found = std::find_if(shapes.begin(), shapes.end(), same);
    if (found == shapes.end()) {
      if (shapes.size() == kShapes) shapes.pop_back();
      shapes.push_back({images, nullptr, nullptr});
      found = shapes.end() - 1;
    }
    std::rotate(shapes.begin(), found, found + 1);
    return shapes.front();
  }

  Size padded(const MasksView& masks) const { return {masks.h * manifest.patch_size, masks.w * manifest.patch_size}; }

  template <class Label>
  void run(const ImagesView& pixels, const LabelsView<Label>& labels) {
    check_labels(labels, pixels, manifest.K());
    const ImageShape shape = checked(pixels.data, pixels.B, pixels.H, pixels.W);
    label(shape, input_of(shape, pixels.data), labels);
  }

  template <class Label>
  void run_resized(std::span<const ImagesView> pictures, const LabelsView<Label>& labels) {
    const ImageShape shape = checked_pictures(pictures, labels.size);
    check_labels(labels, {nullptr, shape.B, shape.H, shape.W}, manifest.K());
    label(shape, resized_input(shape, pictures), labels);
  }

  // Of what was checked.
  template <class Label>
  void label(const ImageShape& shape, const void* input, const LabelsView<Label>& labels) {
    if (backend.gives_labels()) {
      const HostOutputs outputs = infer(shape, input, Wanted::labels);
      if (outputs.masks.data != nullptr) require_numbers(outputs.masks, name);
      std::memcpy(labels.data, outputs.labels, static_cast<std::size_t>(shape.B * shape.H * shape.W) * sizeof(Label));
      return;
    }
    const MasksView masks = infer(shape, input, Wanted::masks).masks;
    Shaped& made = shaped(shape);
    if (!made.labels) {
      made.labels = std::make_unique<LabelPlan>(masks, padded(masks), labels.size, threads, Simd::automatic);
    }
    try {
      made.labels->run(masks.data, labels.data, workers);
    } catch (const std::invalid_argument& error) {
      throw RunError(name + ": " + error.what());
    }
  }

  Engine engine;
  const Manifest& manifest;
  const Backend& backend;
  const std::string& name;
  const Affine preprocess;
  const Process opener;
  const int threads;
  std::unique_ptr<Runner> runner;
  Workers workers;
  std::vector<Shaped> shapes;
  std::vector<float> line;
  std::vector<std::uint8_t> colours;  // of resized pictures, before they are normalised
};

bool DeviceWindows::label(Session& session, const ImagesView& pixels, void* labels, const WindowOptions& options) {
  return session.state_->label_windows(pixels, labels, options);
}

Session::Session(const Engine& engine, const SessionOptions& options) {
  if (options.threads < 0) {
    throw InputError(std::to_string(options.threads) + " threads: wanted 0 (the engine's) or more");
  }
  state_ = of_this_process(std::make_unique<State>(engine, options));
}

Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

void Session::run(const ImagesView& pixels, const LabelsView<std::uint8_t>& labels) { state_->run(pixels, labels); }
void Session::run(const ImagesView& pixels, const LabelsView<std::int16_t>& labels) { state_->run(pixels, labels); }

void Session::run_resized(std::span<const ImagesView> pictures, const LabelsView<std::uint8_t>& labels) {
  state_->run_resized(pictures, labels);
}
void Session::run_resized(std::span<const ImagesView> pictures, const LabelsView<std::int16_t>& labels) {
  state_->run_resized(pictures, labels);
}

MasksView Session::masks(const ImagesView& pixels) {
  state_->require_masks();
  return state_->infer(pixels, Wanted::masks).masks;
}

MasksView Session::masks(const NormalizedView& images) {
  state_->require_masks();
  if (state_->backend.input() != Input::normalized) {
    throw InputError(state_->name + ": takes pixels and normalises them itself; pass uint8 RGB images");
  }
  const ImageShape shape = state_->checked(images.data, images.B, images.H, images.W);
  return state_->infer(shape, images.data, Wanted::masks).masks;
}

void Session::logits(const ImagesView& pixels, float* logits) {
  if (logits == nullptr) throw InputError("logits that are nowhere: wanted a pointer to float32 [B, K, H, W]");
  const MasksView masks = this->masks(pixels);
  State::Shaped& made = state_->shaped({pixels.B, pixels.H, pixels.W});
  if (!made.scores) {
    const Size kept = {pixels.H, pixels.W};
    made.scores = std::make_unique<ScoreRows>(masks.h, masks.w, state_->padded(masks), kept);
  }
  std::vector<float>& line = state_->line;
  line.resize(static_cast<std::size_t>(masks.w));
  for (std::int64_t b = 0; b < masks.B; ++b) {
    const float* const grid = masks.data + b * masks.K * masks.h * masks.w;
    for (std::int64_t y = 0; y < pixels.H; ++y) {
      float* const out = logits + (b * masks.K * pixels.H + y) * pixels.W;
      made.scores->read(grid, masks.K, y, 0, pixels.W, out, pixels.H * pixels.W, line.data());
    }
  }
}

void Session::enqueue(const ImagesView& device_pixels, void* device_labels, void* stream) {
  const ImageShape shape = state_->checked(device_pixels.data, device_pixels.B, device_pixels.H, device_pixels.W);
  if (device_labels == nullptr) throw InputError("labels that are nowhere: wanted memory on the device");
  state_->runner->enqueue(shape, device_pixels.data, device_labels, stream);
}

const Engine& Session::engine() const noexcept { return state_->engine; }
int Session::threads() const noexcept { return state_->threads; }

Description Session::describe() const {
  Description facts = state_->engine.describe();
  facts.no_graphs = state_->runner->no_graphs();
  if (const std::string left = state_->runner->windows_left(); !left.empty()) facts.windows_by = "the CPU: " + left;
  if (const std::string left = state_->runner->resizing_left(); !left.empty()) facts.resized_by = "the CPU: " + left;
  return facts;
}

}  // namespace segmenter_trt
