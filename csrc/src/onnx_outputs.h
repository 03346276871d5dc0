// Choosing an output of a serialized ONNX model, without an ONNX library.
#pragma once

#include <string>
#include <string_view>

namespace segmenter_trt {

// The model with the graph's outputs dropped but for `kept`, so that a runtime computes nothing for the others; every
// other byte stays as it is. Throws ArtifactError when it is no serialized model or has no such output.
std::string keep_output(std::string_view model, std::string_view kept);

}  // namespace segmenter_trt
