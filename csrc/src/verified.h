// What the verdicts in a manifest are worth; engines/segmenter_engines/verified.py is the same in Python.
#pragma once

#include <string>

#include "segmenter_trt/manifest.h"

namespace segmenter_trt {

// SHA-256, in hexadecimal, of what a manifest says that decides labels; verified.py tells of what text.
std::string facts_digest(const Manifest& manifest);

// Why an artifact may not be taken for verified in an engine, such as `openvino-int8`, in one line; empty when it may.
// device: the GPU's name, where a plan must have passed on the same; empty where any will do.
std::string unverified(const Manifest& manifest, const std::string& engine, const std::string& device = "");

// Whether an artifact passed in an engine on a CPU whose sums of 8-bit products can overflow (see `int8_saturates`).
bool passed_saturating(const Manifest& manifest, const std::string& engine);

}  // namespace segmenter_trt
