#include "segmenter_trt/simd.h"

#include <stdexcept>
#include <string>

#include "dispatch.h"

namespace segmenter_trt {
namespace {

bool available(Simd simd) {
#if defined(SEGMENTER_TRT_HAVE_AVX2)
  if (simd == Simd::avx2) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") != 0;
  }
#endif
  return simd == Simd::baseline;
}

}  // namespace

Simd resolve(Simd wanted) {
  if (wanted == Simd::automatic) return available(Simd::avx2) ? Simd::avx2 : Simd::baseline;
  if (!available(wanted)) {
    throw std::invalid_argument(std::string("instruction set ") + name(wanted) +
                                ": this machine or this build lacks it; use automatic");
  }
  return wanted;
}

const char* name(Simd simd) noexcept {
  switch (simd) {
    case Simd::automatic:
      return "automatic";
    case Simd::baseline:
      return "baseline";
    case Simd::avx2:
      return "avx2";
  }
  return "unknown";
}

const Kernels& kernels(Simd wanted) {
  const Simd simd = resolve(wanted);
#if defined(SEGMENTER_TRT_HAVE_AVX2)
  if (simd == Simd::avx2) return kAvx2Kernels;
#endif
  static_cast<void>(simd);
  return kBaselineKernels;
}

}  // namespace segmenter_trt
