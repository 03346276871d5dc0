#include "segmenter_trt/upsample_argmax.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "label_plan.h"
#include "sides.h"
#include "workers.h"

namespace segmenter_trt {
namespace {

// float32 holds pixel + 0.5 exactly up to here.
constexpr std::int64_t kLargestUpsampledSide = 1 << 23;

}  // namespace

void check_sizes(const MasksView& masks, Size size, Size kept) {
  if (masks.B < 0 || masks.K < 1 || masks.h < 1 || masks.w < 1 || masks.h > kLargestUpsampledSide ||
      masks.w > kLargestUpsampledSide) {
    throw std::invalid_argument("masks [" + std::to_string(masks.B) + ", " + std::to_string(masks.K) + ", " +
                                std::to_string(masks.h) + ", " + std::to_string(masks.w) +
                                "]: wanted [B, K, h, w] with K, h and w at least 1");
  }
  if (size.height < 1 || size.width < 1 || size.height > kLargestUpsampledSide || size.width > kLargestUpsampledSide) {
    throw std::invalid_argument("size " + sides(size.height, size.width) + ": wanted sides from 1 to " +
                                std::to_string(kLargestUpsampledSide) + " pixels");
  }
  if (kept.height < 1 || kept.width < 1 || kept.height > size.height || kept.width > size.width) {
    throw std::invalid_argument("crop " + sides(kept.height, kept.width) + ": wanted a part of the " +
                                sides(size.height, size.width) + " pixels upsampled to");
  }
}

template <class Label>
void upsample_argmax(const MasksView& masks, Size size, const LabelsView<Label>& labels, int threads, Simd simd) {
  check_sizes(masks, size, labels.size);
  constexpr std::int64_t most_classes = std::int64_t{std::numeric_limits<Label>::max()} + 1;
  if (masks.K > most_classes) {
    throw std::invalid_argument(std::to_string(masks.K) + " classes: these labels hold at most " +
                                std::to_string(most_classes));
  }
  Workers workers;
  LabelPlan(masks, size, labels.size, threads, simd).run<Label>(masks.data, labels.data, workers);
}

template void upsample_argmax<std::uint8_t>(const MasksView&, Size, const LabelsView<std::uint8_t>&, int, Simd);
template void upsample_argmax<std::int16_t>(const MasksView&, Size, const LabelsView<std::int16_t>&, int, Simd);

}  // namespace segmenter_trt
