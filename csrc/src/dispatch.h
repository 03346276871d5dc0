// From an instruction set to its functions.
#pragma once

#include "kernels.h"
#include "segmenter_trt/simd.h"

namespace segmenter_trt {

// Throws std::invalid_argument as `resolve` does.
const Kernels& kernels(Simd wanted);

}  // namespace segmenter_trt
