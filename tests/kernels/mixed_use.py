"""A kernel that is wrong on Hopper: threads read the tiles that groups of four warps multiply asynchronously."""

import triton
import triton.language as tl


@triton.jit
def product_and_squares(a_ptr, b_ptr, out_ptr, K, WAITS: tl.constexpr):
    """out [64, 64] = a b^T + the squares of both rows, of a and b [64, K]; WAITS: for each product, which is right."""
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
