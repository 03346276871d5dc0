"""Kernels that are wrong, for what looks for faults in compiled code."""

import triton
import triton.language as tl


@triton.jit
def product_and_squares(a_ptr, b_ptr, out_ptr, K, WAITS: tl.constexpr):
    """out [64, 64] = a b^T + the products of both rows' elements, of a and b [64, K].

    Wrong on Hopper without WAITS, for each product: threads read the tiles that four warps multiply meanwhile.
    """
    row, column = tl.arange(0, 64), tl.arange(0, 64)
    total = tl.zeros([64, 64], tl.float32)
    squares = tl.zeros([64, 8], tl.float32)
    tl.assume(K > 0)
    for k in range(0, K, 64):
        a = tl.load(a_ptr + row[:, None] * K + k + column[None, :])
        b = tl.load(b_ptr + row[:, None] * K + k + column[None, :])
        squares += tl.sum(tl.reshape(a.to(tl.float32) * b.to(tl.float32), [64, 8, 8]), 2)
        total = tl.dot(a, b.T, total)
        if WAITS:
            total = tl.where(K > 1, total, 0.0)
    y = total + tl.sum(squares, 1)[:, None]
    tl.store(out_ptr + row[:, None] * 64 + column[None, :], y.to(tl.float16))


@triton.jit
def past_the_end(x_ptr, out_ptr, N):
    """The sum of x [N], of which a multiple of 128 is read."""
    at = tl.arange(0, 128)
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + at, at < (N + 127) // 128 * 128, 0.0), 0))
