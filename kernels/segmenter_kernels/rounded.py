"""Statistics of rows, which for float32 are rounded as IEEE 754 asks.

Triton's `/` and `tl.sqrt` are a bit or two off on a GPU, by which float32 is judged. What is rounded to 16 bits in the
end does without: exact ones take registers that memory-bound kernels have no use for.
"""

import triton
import triton.language as tl


@triton.jit
def mean(total, count, EXACT: tl.constexpr):
    """total / count, of float32 sums and an integer."""
    # a count of 1 is a constant to the compiler, which has no .to()
    return tl.div_rn(total, tl.cast(count, tl.float32)) if EXACT else total / count


@triton.jit
def inverse_root(x, EXACT: tl.constexpr):
    """1 / sqrt(x), of float32."""
    return tl.div_rn(1.0, tl.sqrt_rn(x)) if EXACT else 1.0 / tl.sqrt(x)
