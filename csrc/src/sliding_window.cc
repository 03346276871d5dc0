#include "segmenter_trt/sliding_window.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "checks.h"
#include "device_windows.h"
#include "label_plan.h"
#include "score_rows.h"
#include "segmenter_trt/errors.h"
#include "window_scores.h"
#include "windows.h"
#include "workers.h"

namespace segmenter_trt {
namespace {

// Of what the engine takes, before memory for windows is asked for.
WindowOptions checked(const WindowOptions& options, const Manifest& manifest) {
  WindowOptions definite = options;
  if (definite.stride == 0) definite.stride = definite.window;
  if (definite.stride < 1 || definite.stride > definite.window) {
    throw InputError("stride " + std::to_string(options.stride) + " with window " + std::to_string(options.window) +
                     ": wanted 1 to " + std::to_string(options.window) + ", or pixels are left out");
  }
  if (definite.batch < 1) throw InputError("window batch " + std::to_string(options.batch) + ": wanted 1 or more");
  check_size(options.window, options.window, manifest);
  check_batch(std::max(definite.batch, manifest.batch.min), manifest.batch);
  return definite;
}

// The first largest of K scores for each of W pixels, [K, W]; where `count` is given, only for those above 1.
template <class Label>
class Winners {
 public:
  explicit Winners(std::int64_t W) : best_(static_cast<std::size_t>(W)), winner_(static_cast<std::size_t>(W)) {}

  void write(const float* scores, std::int64_t K, const std::int32_t* count, Label* labels) {
    const auto W = static_cast<std::int64_t>(best_.size());
    float* const best = best_.data();
    std::int32_t* const winner = winner_.data();
    std::copy_n(scores, W, best);
    std::fill_n(winner, W, 0);
    for (std::int32_t k = 1; k < K; ++k) {
      const float* const rival = scores + k * W;
      for (std::int64_t x = 0; x < W; ++x) {
        const bool better = rival[x] > best[x];
        best[x] = better ? rival[x] : best[x];
        winner[x] = better ? k : winner[x];
      }
    }
    for (std::int64_t x = 0; x < W; ++x) {
      if (count == nullptr || count[x] > 1) labels[x] = static_cast<Label>(winner[x]);
    }
  }

 private:
  std::vector<float> best_;
  std::vector<std::int32_t> winner_;
};

Size padded(const MasksView& masks, const Session& session) {
  const std::int64_t P = session.engine().manifest().patch_size;
  return {masks.h * P, masks.w * P};
}

// Labels of an image no smaller than the window: each window's own, then the mean's where windows overlap.
template <class Label>
void label_windows(Session& session, const ImagesView& pixels, Label* labels, const WindowOptions& options) {
  const std::int64_t window = options.window;
  const std::vector<std::int64_t> ys = anchors(pixels.H, window, options.stride);
  const std::vector<std::int64_t> xs = anchors(pixels.W, window, options.stride);
  const std::int64_t K = session.engine().manifest().K();
  const bool alone = ys.size() * window == static_cast<std::uint64_t>(pixels.H) &&
                     xs.size() * window == static_cast<std::uint64_t>(pixels.W);
  Windows windows(session, {pixels.H, pixels.W, pixels.data, nullptr}, options);
  Workers workers;
  std::unique_ptr<LabelPlan> plan;
  std::unique_ptr<WindowScores> scores;
  std::vector<Label> own(static_cast<std::size_t>(window * window));
  std::vector<WindowScores::Scratch> scratch;
  std::vector<std::vector<float>> means;
  std::vector<Winners<Label>> winners;
  for (std::size_t j = 0; j < ys.size(); ++j) {
    windows.row(ys[j], xs, [&](std::size_t i, const MasksView& masks) {
      if (!plan) {
        const Size whole = padded(masks, session);
        plan = std::make_unique<LabelPlan>(masks, whole, Size{window, window}, session.threads(), Simd::automatic);
        if (!alone) scores = std::make_unique<WindowScores>(xs, window, K, masks.h, masks.w, whole);
      }
      if (scores && i == 0) scores->start_row(ys[j]);
      if (scores) scores->add(masks.data);
      try {
        plan->run(masks.data, own.data(), workers);
      } catch (const std::invalid_argument& error) {
        throw RunError(std::string("window at ") + std::to_string(ys[j]) + ", " + std::to_string(xs[i]) + ": " +
                       error.what());
      }
      for (std::int64_t y = 0; y < window; ++y) {
        std::copy_n(own.data() + y * window, window, labels + (ys[j] + y) * pixels.W + xs[i]);
      }
    });
    if (!scores) continue;
    // no later window lies on the rows above its own
    const std::int64_t end = j + 1 < ys.size() ? ys[j + 1] : pixels.H;
    while (static_cast<int>(scratch.size()) < session.threads()) {
      scratch.push_back(scores->scratch());
      means.emplace_back(static_cast<std::size_t>(K * pixels.W));
      winners.emplace_back(pixels.W);
    }
    std::atomic<std::int64_t> next = ys[j];
    workers.run(session.threads(), [&](int index) {
      const auto own_index = static_cast<std::size_t>(index);
      float* const mean = means[own_index].data();
      for (std::int64_t y; (y = next.fetch_add(1, std::memory_order_relaxed)) < end;) {
        if (!scores->overlaps(y)) continue;
        const std::int32_t* const count = scores->read(y, true, mean, scratch[own_index]);
        winners[own_index].write(mean, K, count, labels + y * pixels.W);
      }
    });
    scores->drop_above(end);
  }
}

// The size segmenter.window.enlarge gives an image with a side smaller than the window.
Size enlarged_size(std::int64_t H, std::int64_t W, std::int64_t window) {
  const auto other = [&](std::int64_t longer, std::int64_t shorter) {
    return static_cast<std::int64_t>(static_cast<double>(longer) / static_cast<double>(shorter) *
                                     static_cast<double>(window));
  };
  return H < W ? Size{window, other(W, H)} : Size{other(H, W), window};
}

// float32 [3, size]: the image as the network is given it, enlarged.
std::vector<float> enlarge(const ImagesView& pixels, const Affine& affine, Size size, int threads) {
  std::vector<float> planes(static_cast<std::size_t>(3 * pixels.H * pixels.W));
  normalize(pixels, affine.scale.data(), affine.shift.data(), {planes.data(), pixels.H, pixels.W}, threads);
  std::vector<float> larger(static_cast<std::size_t>(3 * size.height * size.width));
  std::vector<float> line(static_cast<std::size_t>(pixels.W));
  const ScoreRows rows(pixels.H, pixels.W, size, size);
  for (std::int64_t y = 0; y < size.height; ++y) {
    rows.read(planes.data(), 3, y, 0, size.width, larger.data() + y * size.width, size.height * size.width,
              line.data());
  }
  return larger;
}

// The same rounded to colours, for engines that take those.
std::vector<std::uint8_t> enlarge_pixels(const ImagesView& pixels, Size size, int threads) {
  const std::vector<float> planes = enlarge(pixels, {{1, 1, 1}, {0, 0, 0}}, size, threads);
  const std::int64_t area = size.height * size.width;
  std::vector<std::uint8_t> colours(planes.size());
  for (std::int64_t i = 0; i < area; ++i) {
    for (std::int64_t c = 0; c < 3; ++c) {
      colours[static_cast<std::size_t>(3 * i + c)] =
          static_cast<std::uint8_t>(std::lround(planes[static_cast<std::size_t>(c * area + i)]));
    }
  }
  return colours;
}

// Labels of an image smaller than the window: mean scores of the enlarged one, resized to the image.
template <class Label>
void label_enlarged(Session& session, const ImagesView& pixels, Label* labels, const WindowOptions& options) {
  const Manifest& manifest = session.engine().manifest();
  const Size size = enlarged_size(pixels.H, pixels.W, options.window);
  std::vector<float> planes;
  std::vector<std::uint8_t> colours;
  Source source = {size.height, size.width, nullptr, nullptr};
  if (session.describe().input == Input::pixels) {
    colours = enlarge_pixels(pixels, size, session.threads());
    source.pixels = colours.data();
  } else {
    planes = enlarge(pixels, affine(manifest.preprocess), size, session.threads());
    source.planes = planes.data();
  }
  const std::vector<std::int64_t> ys = anchors(size.height, options.window, options.stride);
  const std::vector<std::int64_t> xs = anchors(size.width, options.window, options.stride);
  Windows windows(session, source, options);
  std::unique_ptr<WindowScores> scores;
  for (const std::int64_t top : ys) {
    windows.row(top, xs, [&](std::size_t i, const MasksView& masks) {
      require_numbers(masks, "window at " + std::to_string(top) + ", " + std::to_string(xs[i]));
      if (!scores) {
        scores = std::make_unique<WindowScores>(xs, options.window, masks.K, masks.h, masks.w, padded(masks, session));
      }
      if (i == 0) scores->start_row(top);
      scores->add(masks.data);
    });
  }

  const std::int64_t K = manifest.K();
  const Axis rows = make_axis(size.height, pixels.H, pixels.H);
  const Axis columns = make_axis(size.width, pixels.W, pixels.W);
  WindowScores::Scratch scratch = scores->scratch();
  std::vector<float> top(static_cast<std::size_t>(K * size.width));
  std::vector<float> bottom(top.size());
  std::vector<float> line(static_cast<std::size_t>(size.width));
  std::vector<float> resized(static_cast<std::size_t>(K * pixels.W));
  Winners<Label> winners(pixels.W);
  for (const Cell& cell : rows.cells) {
    scores->read(cell.low, false, top.data(), scratch);
    scores->read(cell.high, false, bottom.data(), scratch);
    for (std::int64_t y = cell.begin; y < cell.end; ++y) {
      const float fy = rows.fraction[static_cast<std::size_t>(y)];
      for (std::int64_t k = 0; k < K; ++k) {
        const float* const upper = top.data() + k * size.width;
        const float* const lower = bottom.data() + k * size.width;
        for (std::int64_t x = 0; x < size.width; ++x) line[x] = upper[x] + (lower[x] - upper[x]) * fy;
        columns.spread(line.data(), 0, pixels.W, resized.data() + k * pixels.W);
      }
      winners.write(resized.data(), K, nullptr, labels + y * pixels.W);
    }
  }
}

template <class Label>
void run(Session& session, const ImagesView& pixels, const LabelsView<Label>& labels, const WindowOptions& given) {
  const Manifest& manifest = session.engine().manifest();
  const WindowOptions options = checked(given, manifest);
  if (pixels.data == nullptr || pixels.B != 1 || pixels.H < 1 || pixels.W < 1) {
    throw InputError("images [" + std::to_string(pixels.B) + ", " + std::to_string(pixels.H) + ", " +
                     std::to_string(pixels.W) + ", 3]: wanted one image with a pixel at least");
  }
  require_enlargeable(pixels.H, pixels.W, options.window);
  check_labels(labels, pixels, manifest.K());
  if (std::min(pixels.H, pixels.W) < options.window) {
    label_enlarged(session, pixels, labels.data, options);
  } else if (!DeviceWindows::label(session, pixels, labels.data, options)) {
    // also where its scores are no numbers: this way says which
    label_windows(session, pixels, labels.data, options);
  }
}

}  // namespace

void require_enlargeable(std::int64_t H, std::int64_t W, std::int64_t window) {
  if (std::min(H, W) >= window) return;
  const Size size = enlarged_size(H, W, window);
  if (size.width <= kMostEnlarged / size.height) return;
  throw InputError("image " + std::to_string(H) + "x" + std::to_string(W) +
                   ": its shorter side enlarged to the window's " + std::to_string(window) + " makes it larger than " +
                   std::to_string(kMostEnlarged) + " pixels; take a smaller window, or leave it out");
}

std::vector<std::int64_t> anchors(std::int64_t length, std::int64_t window, std::int64_t stride) {
  if (window < 1 || length < window || stride < 1) {
    throw InputError("a side of " + std::to_string(length) + " pixels, window " + std::to_string(window) + ", stride " +
                     std::to_string(stride) + ": wanted a window inside the side, and a stride of 1 or more");
  }
  std::vector<std::int64_t> starts;
  for (std::int64_t start = 0; start < length - window; start += stride) starts.push_back(start);
  starts.push_back(length - window);
  return starts;
}

void run_sliding_window(Session& session, const ImagesView& pixels, const LabelsView<std::uint8_t>& labels,
                        const WindowOptions& options) {
  run(session, pixels, labels, options);
}

void run_sliding_window(Session& session, const ImagesView& pixels, const LabelsView<std::int16_t>& labels,
                        const WindowOptions& options) {
  run(session, pixels, labels, options);
}

}  // namespace segmenter_trt
