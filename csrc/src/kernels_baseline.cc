// The routines for any machine of the architecture: SSE2 on x86-64, NEON on aarch64.
#define LANES 4
#include "kernels_vector.h"

namespace segmenter_trt {
const Kernels kBaselineKernels = kKernels;
}
