// The table of a library that was built without compiled kernels.
#include "kernels.h"

namespace segmenter_launch {

const Kernels kKernels = {{}, ""};

}  // namespace segmenter_launch
