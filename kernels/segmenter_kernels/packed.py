"""How the attention kernels read one head of packed projections: [B, N, 3C] with (3, A, D) along the last axis.

A head dimension that is no power of two is read in two parts that are, 80 = 64 + 16 and 96 = 64 + 32: padding either
to 128 would cost 1.6 or 1.33 times the work.
"""

import torch
import triton
import triton.language as tl

HEAD_DIMS = (32, 64, 80, 96, 128)
LOG2_E = tl.constexpr(1.4426950408889634)


def parts(D: int) -> tuple[int, int]:
    """A head dimension as two powers of two; the second is 0 where the first is all."""
    first = 1 << (D.bit_length() - 1)
    return first, D - first


def case(dtype: torch.dtype, D: int) -> str:
    """The name of a dtype and head dimension in the tile data, such as `16-64`: 16-bit types share their tiles."""
    return f"{8 * dtype.itemsize}-{D}"


@triton.jit
def piece(
    x, image, row, column, N, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INSIDE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS] of one image of x [B, N, width], a pointer or a descriptor; rows past the image's last are 0.

    INSIDE promises that there are none. A descriptor knows where an image ends, so the next one's rows never come.
    """
    if DESCRIPTORS:
        return x.load([image, row, column]).reshape([ROWS, COLUMNS])
    else:
        rows = tl.arange(0, ROWS)
        start = (tl.cast(image, tl.int64) * N + row) * width + column
        at = x + start + rows[:, None] * width + tl.arange(0, COLUMNS)[None, :]  # [ROWS, COLUMNS]
        if INSIDE:
            return tl.load(at)
        else:
            return tl.load(at, (row + rows < N)[:, None], 0.0)
