// Which instruction set the compiled routines use. Results are the same bits with each.
#pragma once

namespace segmenter_trt {

enum class Simd {
  automatic,  // the best this machine has
  baseline,   // what every machine of this architecture has: SSE2, NEON
  avx2,
};

// `automatic` made definite. Throws std::invalid_argument for a set this machine or this build lacks.
Simd resolve(Simd wanted);

const char* name(Simd simd) noexcept;

}  // namespace segmenter_trt
