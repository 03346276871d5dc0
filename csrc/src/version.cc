#include "segmenter_trt/version.h"

#include "backend.h"
#include "segmenter_trt/simd.h"

#if defined(__clang__)
#define SEGMENTER_TRT_COMPILER "clang " __clang_version__
#else
#define SEGMENTER_TRT_COMPILER "g++ " __VERSION__
#endif

namespace segmenter_trt {

BuildInfo build_info() noexcept {
  return {SEGMENTER_TRT_VERSION, SEGMENTER_TRT_COMPILER, "C++20", name(resolve(Simd::automatic)), has_tensorrt()};
}

}  // namespace segmenter_trt
