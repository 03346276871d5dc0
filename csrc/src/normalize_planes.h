// normalize, on threads that are kept.
#pragma once

#include "segmenter_trt/normalize.h"
#include "workers.h"

namespace segmenter_trt {

void normalize_planes(const ImagesView& images, const float scale[3], const float shift[3], const PlanesView& planes,
                      int threads, Simd simd, Workers& workers);

}  // namespace segmenter_trt
