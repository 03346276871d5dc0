// What a manifest's text may be: every field's type and range. engines/segmenter_engines/manifest.py states the rules
// and manifest_fields.py is the same in Python; a test holds both to the same verdicts.
#pragma once

#include <string_view>

#include "segmenter_trt/manifest.h"

namespace segmenter_trt {

// Throws Refused for whatever is no manifest of format 2.
Manifest read_fields(std::string_view text);

}  // namespace segmenter_trt
