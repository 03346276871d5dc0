"""Parts of a block of values inside a kernel."""

import triton
import triton.language as tl


@triton.jit
def halves(x):
    """The left and the right half of a block's columns."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), [0, 2, 1]))
