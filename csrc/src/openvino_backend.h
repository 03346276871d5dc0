// Exported graphs on the CPU, in OpenVINO.
#pragma once

#include <memory>

#include "backend.h"

namespace segmenter_trt {

// Throws Unavailable without OpenVINO or what a precision needs, ArtifactError for a graph it cannot open, and
// InputError for a precision it does not know.
std::unique_ptr<Backend> make_openvino_backend(const BackendRequest& request);

}  // namespace segmenter_trt
