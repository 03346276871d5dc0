// Labels of an image of any size, through windows of the one an engine takes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "segmenter_trt/session.h"

namespace segmenter_trt {

struct WindowOptions {
  std::int64_t window;      // side in pixels, usually the training crop
  std::int64_t stride = 0;  // pixels from one window to the next; 0 takes the window's side
  std::int64_t batch = 1;   // windows in one call of the network
  // Called before every call of the network but the first; may throw to stop, and run other sessions, but not this one.
  std::function<void()> between = {};
};

// Where windows start along a side of `length` pixels: every `stride`, the last one flush with the end.
std::vector<std::int64_t> anchors(std::int64_t length, std::int64_t window, std::int64_t stride);

// Pixels an image may have once it is enlarged to a window: what Pillow takes for a bomb, as an image a pixel wide
// becomes one of gigabytes.
inline constexpr std::int64_t kMostEnlarged = 89'478'485;

// Throws InputError for an image whose enlargement to the window would have more pixels than that.
void require_enlargeable(std::int64_t H, std::int64_t W, std::int64_t window);

// The windows and the merge of segmenter.window.segment for one view that is not mirrored: an image smaller than the
// window is enlarged until its shorter side is the window's, logits are averaged where windows overlap, and those of an
// enlarged image are resized to the image. Logits are made a row at a time, and only where windows overlap.
// On a GPU the image is uploaded once, windows are cut and merged there, and the labels alone come back: see
// Description::windows_by. Rounding differs there, so that two classes that score nearly the same may change places. An
// image smaller than the window is enlarged, and its masks merged, on the CPU, as are masks of more than a gigabyte, or
// of more than the GPU has memory for.
//
// pixels: one image, [1, H, W, 3]. An engine that takes pixels gets an enlarged image rounded to whole colours, which
// segmenter.window.segment does not round. Throws InputError, as Session does, for windows that would leave gaps, and
// as require_enlargeable does.
void run_sliding_window(Session& session, const ImagesView& pixels, const LabelsView<std::uint8_t>& labels,
                        const WindowOptions& options);
void run_sliding_window(Session& session, const ImagesView& pixels, const LabelsView<std::int16_t>& labels,
                        const WindowOptions& options);

}  // namespace segmenter_trt
