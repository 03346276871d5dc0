// Windows of a picture by a session whose runtime merges them itself.
#pragma once

#include "segmenter_trt/session.h"
#include "segmenter_trt/sliding_window.h"

namespace segmenter_trt {

struct DeviceWindows {
  // pixels: one image no smaller than the window; labels: of the type its number of classes has. False where the
  // runtime does not, and where its scores are no numbers; nothing is written then.
  static bool label(Session& session, const ImagesView& pixels, void* labels, const WindowOptions& options);
};

}  // namespace segmenter_trt
