// What every way to labels demands of its caller.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "segmenter_trt/errors.h"
#include "segmenter_trt/manifest.h"
#include "segmenter_trt/normalize.h"
#include "segmenter_trt/upsample_argmax.h"
#include "sides.h"

namespace segmenter_trt {

// Throws InputError for images of a size the engine does not take.
inline void check_size(std::int64_t H, std::int64_t W, const Manifest& manifest) {
  const Range& height = manifest.height;
  const Range& width = manifest.width;
  if (height.holds(H) && width.holds(W)) return;
  const std::string image = "image " + sides(H, W) + ": this engine takes ";
  if (height.fixed() && width.fixed()) {
    // less than a patch, and more than a manifest holds, is what no export takes
    const std::string again =
        std::min(H, W) < manifest.patch_size || std::max(H, W) > kLargestImageSide
            ? ""
            : ", or export again with --height " + std::to_string(H) + " --width " + std::to_string(W);
    throw InputError(image + sides(height.min, width.min) + "; resize it" + again);
  }
  throw InputError(image + sides(height.min, width.min) + " to " + sides(height.max, width.max) + "; resize it");
}

// Throws InputError for a number of images the engine does not take.
inline void check_batch(std::int64_t count, const Range& batch) {
  if (batch.holds(count)) return;
  throw InputError("batch of " + std::to_string(count) + ": this engine takes " +
                   (count > batch.max ? "at most " + std::to_string(batch.max) + "; split it"
                                      : "at least " + std::to_string(batch.min) + "; fill it up"));
}

// Throws InputError for labels of another type than K classes have, or of another size than the images.
template <class Label>
void check_labels(const LabelsView<Label>& labels, const ImagesView& images, std::int64_t K) {
  constexpr bool bytes = std::is_same_v<Label, std::uint8_t>;
  if (bytes != (K <= kMostByteClasses)) {
    throw InputError(std::string("labels ") + (bytes ? "uint8" : "int16") + ": this engine has " + std::to_string(K) +
                     " classes; pass " + (bytes ? "int16" : "uint8"));
  }
  if (labels.data == nullptr || labels.size.height != images.H || labels.size.width != images.W) {
    throw InputError("labels " + sides(labels.size.height, labels.size.width) + ": wanted memory for " +
                     sides(images.H, images.W) + ", the images' size");
  }
}

}  // namespace segmenter_trt
