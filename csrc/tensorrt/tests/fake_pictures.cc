// The kernels in this library, told to the fake driver, with what each computes: merging by the routines of the CPU,
// resizing by its formula. What a launch gets wrong is an abort or another label. Registered when the library is
// loaded.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "checks.h"
#include "fake_cuda.h"
#include "launcher.h"
#include "score_rows.h"

namespace segmenter_trt {
namespace {

using segmenter_launch::Form;
using segmenter_launch::Image;
using segmenter_launch::kKernels;
using segmenter_launch::Op;

[[noreturn]] void refuse(const char* what) {
  std::fprintf(stderr, "a launch with %s\n", what);
  std::abort();
}

// Parameters by the names the manifest gives them.
class Arguments {
 public:
  Arguments(const Form& form, unsigned threads, const void* const* parameters) : form_(form), parameters_(parameters) {
    if (threads != form.threads) refuse("another number of threads");
  }

  std::int64_t integer(std::string_view name) const { return value<std::int32_t>(name); }

  // Memory on the device, of so many elements.
  template <class Element>
  Element* memory(std::string_view name, std::int64_t elements) const {
    auto* const found = value<Element*>(name);
    if (fake_cuda_on_device(found, static_cast<std::size_t>(elements) * sizeof(Element)) == 0) refuse(name.data());
    return found;
  }

 private:
  template <class Value>
  Value value(std::string_view name) const {
    for (std::size_t index = 0; index < form_.parameters.size(); ++index) {
      if (form_.parameters[index].name != name) continue;
      if (form_.parameters[index].bytes != sizeof(Value)) refuse("a parameter of another size");
      Value found{};
      std::memcpy(&found, parameters_[index], sizeof found);
      return found;
    }
    refuse("a parameter that is not there");
  }

  const Form& form_;
  const void* const* const parameters_;
};

// Mean scores of the windows on each pixel; labels of the pixels that the programs cover.
template <class Label>
void merge_as(const Form& form, unsigned programs, const Arguments& given) {
  const auto number = [&](const char* name) { return given.integer(name); };
  const std::int64_t K = number("K"), h = number("h"), w = number("w"), H = number("H"), W = number("W");
  const std::int64_t window = number("window"), stride = number("stride");
  const std::int64_t rows = number("rows"), columns = number("columns");
  const std::int64_t block = form.constant("BLOCK_X"), blocks = (W + block - 1) / block;
  if (static_cast<std::int64_t>(programs) != blocks * H) refuse("another number of programs");
  const float* const masks =
      given.memory<const float>("masks_ptr", (rows * columns - 1) * number("stride_n") + K * h * w);
  auto* const labels = given.memory<Label>("labels_ptr", H * W);
  auto* const odd = given.memory<std::int32_t>("odd_ptr", 1);
  std::vector<float> total(static_cast<std::size_t>(K * H * W)), one(static_cast<std::size_t>(K * window));
  std::vector<float> count(static_cast<std::size_t>(H * W)), line(static_cast<std::size_t>(w));
  std::vector<float> grid(static_cast<std::size_t>(K * h * w));
  const ScoreRows scores(h, w, {number("side_y"), number("side_x")}, {window, window});
  for (std::int64_t n = 0; n < rows * columns; ++n) {
    for (std::int64_t k = 0; k < K; ++k) {
      for (std::int64_t i = 0; i < h * w; ++i) {
        grid[static_cast<std::size_t>(k * h * w + i)] =
            masks[n * number("stride_n") + k * number("stride_k") + i / w * number("stride_h") + i % w];
      }
    }
    const std::int64_t top = std::min(n / columns * stride, H - window);
    const std::int64_t left = std::min(n % columns * stride, W - window);
    for (std::int64_t y = 0; y < window; ++y) {
      scores.read(grid.data(), K, y, 0, window, one.data(), window, line.data());
      for (std::int64_t x = 0; x < window; ++x) {
        const std::int64_t place = (top + y) * W + left + x;
        count[static_cast<std::size_t>(place)] += 1;
        for (std::int64_t k = 0; k < K; ++k) {
          total[static_cast<std::size_t>(k * H * W + place)] += one[static_cast<std::size_t>(k * window + x)];
        }
      }
    }
  }
  for (std::int64_t place = 0; place < H * W; ++place) {
    const auto sum = [&](std::int64_t k) { return total[static_cast<std::size_t>(k * H * W + place)]; };
    const auto mean = [&](std::int64_t k) { return sum(k) / count[static_cast<std::size_t>(place)]; };
    std::int64_t best = 0;
    for (std::int64_t k = 0; k < K; ++k) {
      if (!(std::abs(sum(k)) <= 1e37F)) *odd = 1;
      best = mean(k) > mean(best) ? k : best;
    }
    labels[place] = static_cast<Label>(best);
  }
}

void merge(const void* form, unsigned programs, unsigned threads, const void* const* parameters) {
  const Form& launched = *static_cast<const Form*>(form);
  const Arguments given(launched, threads, parameters);
  if (given.integer("K") <= kMostByteClasses) {
    merge_as<std::uint8_t>(launched, programs, given);
  } else {
    merge_as<std::int16_t>(launched, programs, given);
  }
}

void resize(const void* form, unsigned programs, unsigned threads, const void* const* parameters) {
  const Form& launched = *static_cast<const Form*>(form);
  const Arguments given(launched, threads, parameters);
  const std::int64_t length = given.integer("length"), to = given.integer("to"), inner = given.integer("inner");
  const std::int64_t taps = given.integer("taps"), block = launched.constant("BLOCK");
  const std::int64_t blocks = (to * inner + block - 1) / block, outer = programs / blocks;
  if (static_cast<std::int64_t>(programs) != outer * blocks) refuse("another number of programs");
  const auto* const images = given.memory<const std::uint8_t>("images_ptr", outer * length * inner);
  const auto* const first = given.memory<const std::int32_t>("first_ptr", to);
  const auto* const weights = given.memory<const std::int32_t>("weights_ptr", to * taps);
  auto* const resized = given.memory<std::uint8_t>("resized_ptr", outer * to * inner);
  const int precision = launched.constant("PRECISION");
  for (std::int64_t at = 0; at < outer * to * inner; ++at) {
    const std::int64_t o = at / (to * inner), t = at / inner % to;
    std::int32_t total = 1 << (precision - 1);
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      const std::int32_t weight = weights[t * taps + tap];
      if (weight != 0) total += weight * images[(o * length + first[t] + tap) * inner + at % inner];
    }
    resized[at] = static_cast<std::uint8_t>(std::min(total >> precision, 255));
  }
}

void normalize(const void* form, unsigned programs, unsigned threads, const void* const* parameters) {
  const Form& launched = *static_cast<const Form*>(form);
  const Arguments given(launched, threads, parameters);
  const std::int64_t pixels = given.integer("pixels"), block = launched.constant("BLOCK");
  const std::int64_t blocks = (pixels + block - 1) / block, images = programs / blocks;
  if (static_cast<std::int64_t>(programs) != images * blocks) refuse("another number of programs");
  const auto* const from = given.memory<const std::uint8_t>("images_ptr", images * pixels * 3);
  const auto* const table = given.memory<const float>("table_ptr", 3 * 256);
  auto* const planes = given.memory<float>("planes_ptr", images * 3 * pixels);
  for (std::int64_t b = 0; b < images; ++b) {
    for (std::int64_t c = 0; c < 3; ++c) {
      for (std::int64_t i = 0; i < pixels; ++i) {
        planes[(b * 3 + c) * pixels + i] = table[c * 256 + from[(b * pixels + i) * 3 + c]];
      }
    }
  }
}

FakeCompute compute_of(Op op) {
  if (op == Op::resize) return resize;
  return op == Op::normalize ? normalize : merge;
}

[[maybe_unused]] const bool registered = [] {
  for (const Image& image : kKernels.images) {
    for (const Form& form : image.forms) {
      std::vector<std::size_t> bytes;
      for (const auto& parameter : form.parameters) bytes.push_back(parameter.bytes);
      fake_cuda_add_kernel(image.code, form.symbol, form.architecture, bytes.data(), bytes.size(), compute_of(image.op),
                           &form);
    }
  }
  return true;
}();

}  // namespace
}  // namespace segmenter_trt
