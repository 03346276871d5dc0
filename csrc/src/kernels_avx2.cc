// The routines for x86-64 with AVX2. Measured beside these, AVX-512 gained nothing on smooth masks.
#define LANES 8
#include "kernels_vector.h"

namespace segmenter_trt {
const Kernels kAvx2Kernels = kKernels;
}
