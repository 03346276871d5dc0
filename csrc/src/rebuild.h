// How to make an artifact again, as engines/segmenter_engines/manifest.py says it.
#pragma once

#include <string>

#include "segmenter_trt/manifest.h"

namespace segmenter_trt {

// Advice that ends an error.
std::string rebuild_advice(const Manifest& manifest, const std::string& artifact);

}  // namespace segmenter_trt
