"""x weight^T, one output tile at a time: what the linear ops share. Each op's kernel adds its own epilogue.

x is [M, K] and weight [N, K], both contiguous, so that either side of the product is read along K. Where a GPU copies
by tensor descriptor, a tile that hangs over an edge is filled with zeros by the hardware; elsewhere rows past the end
wrap around to rows that exist (their results are never stored) and only K is masked.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from segmenter_kernels import tiles
from segmenter_kernels.checks import INTERPRETED
from segmenter_kernels.tiles import Tile

SMALL = 2**22  # outputs with fewer elements leave multiprocessors idle unless tiles are small
SIZES = ("small", "large")
TILE_KEYS = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "DESCRIPTORS", "PERSISTENT")
# of a tile for rows that begin anywhere: single elements of them pass registers, of which larger tiles have none left
ANYWHERE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "PERSISTENT": 0, "num_warps": 4}
_INTERPRETED_PROGRAMS = 3  # so that a persistent program has several tiles


@triton.jit
def place(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and column of an output tile; tiles go down GROUP_M rows first, so that weights are met in L2."""
    columns = tl.cdiv(N, BLOCK_N)
    first = tile // (GROUP_M * columns) * GROUP_M
    rows = tl.minimum(tl.cdiv(M, BLOCK_M) - first, GROUP_M)
    within = tile % (GROUP_M * columns)
    return (first + within % rows) * BLOCK_M, within // rows * BLOCK_N


@triton.jit
def product(
    x, weight, scale, start_m, start_n, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr, INTEGER: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of x weight^T in int32 (INTEGER) or float32.

    With SPLIT it is `scale x weight^T`, each BLOCK_K summed apart: one long sum in float32 loses more than PyTorch's,
    and the matrix units of some GPUs keep 13 bits of a sum of float8 products. The scale, which must be known only at
    run time, keeps the compiler from joining the sums.
    """
    kind: tl.constexpr = tl.int32 if INTEGER else tl.float32
    total = tl.zeros([BLOCK_M, BLOCK_N], kind)
    # without this, Triton 3.6 minds a loop that never runs, and wgmma is serialised
    tl.assume(K > 0)
    if DESCRIPTORS:
        for k in range(0, K, BLOCK_K):
            a = x.load([start_m, k])
            b = weight.load([start_n, k])
            if SPLIT:
                total += tl.dot(a, b.T, input_precision="ieee") * scale
            else:
                total = tl.dot(a, b.T, total, input_precision="ieee", out_dtype=kind)
    else:
        row = ((start_m + tl.arange(0, BLOCK_M)) % M).to(tl.int64)
        column = ((start_n + tl.arange(0, BLOCK_N)) % N).to(tl.int64)
        depth = tl.arange(0, BLOCK_K)
        a_at = x + (row[:, None] * K + depth[None, :])
        b_at = weight + (column[None, :] * K + depth[:, None])
        for k in range(0, K, BLOCK_K):
            if EVEN_K:
                a, b = tl.load(a_at), tl.load(b_at)
            else:
                keep = depth < K - k
                a, b = tl.load(a_at, keep[None, :], 0.0), tl.load(b_at, keep[:, None], 0.0)
            if SPLIT:
                total += tl.dot(a, b, input_precision="ieee") * scale
            else:
                total = tl.dot(a, b, total, input_precision="ieee", out_dtype=kind)
            a_at += BLOCK_K
            b_at += BLOCK_K
    return total


@triton.jit
def load_row(vector_ptr, start_n, N, BLOCK_N: tl.constexpr):
    """[1, BLOCK_N] float32 of a vector over the output's columns."""
    column = start_n + tl.arange(0, BLOCK_N)
    return tl.load(vector_ptr + column, column < N, 0.0).to(tl.float32)[None, :]


@triton.jit
def load_tile(x, start_m, start_n, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """[BLOCK_M, BLOCK_N] float32 of a matrix shaped like the output."""
    if DESCRIPTORS:
        return x.load([start_m, start_n]).to(tl.float32)
    else:
        row, column = start_m + tl.arange(0, BLOCK_M), start_n + tl.arange(0, BLOCK_N)
        keep = (row < M)[:, None] & (column < N)[None, :]
        return tl.load(x + (row.to(tl.int64)[:, None] * N + column[None, :]), keep, 0.0).to(tl.float32)


@triton.jit
def store_tile(y, out, start_m, start_n, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Round a tile to the output's type and store the part of it that exists."""
    if DESCRIPTORS:
        out.store([start_m, start_n], y.to(out.dtype))
    else:
        row, column = start_m + tl.arange(0, BLOCK_M), start_n + tl.arange(0, BLOCK_N)
        keep = (row < M)[:, None] & (column < N)[None, :]
        tl.store(out + (row.to(tl.int64)[:, None] * N + column[None, :]), y.to(out.dtype.element_ty), keep)


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """x Phi(x), Phi the normal distribution: max(x, 0) - |x| Phi(-|x|).

    Unless EXACT, the logarithm of Phi(-a) is a polynomial fitted on [0, 6]: 8e-6 off at most relative to results that
    fp16 holds normally (to 6e-5), a thirtieth of its rounding there; 5e-10 off beyond, and 6e-9 where |x| is past 6.
    That takes a third of erf's instructions; an epilogue of erf takes as long as its product.
    """
    if EXACT:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        a = tl.minimum(tl.abs(x), 6.0)
        p = a * 3.22471351e-05 - 0.000745952479
        p = p * a + 0.00793073978
        p = p * a - 0.0530270562
        p = p * a - 0.459194422
        p = p * a - 1.15102816
        p = p * a - 1.00000799
        # the minimum above drops a NaN; this maximum must not
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tl.exp2(p)


@triton.jit
def gelu_slope(x):
    """Derivative of GELU: Phi(x) + x phi(x)."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


def size_of(M: int, N: int) -> str:
    """Which of SIZES an [M, N] output is."""
    return "small" if M * N < SMALL else "large"


def programs(M: int, N: int, tile: Tile, device: torch.device) -> int:
    """How many programs to launch: one a tile, or, when persistent, as many as run at once."""
    count = triton.cdiv(M, tile["BLOCK_M"]) * triton.cdiv(N, tile["BLOCK_N"])
    if not tile["PERSISTENT"]:
        return count
    resident = _INTERPRETED_PROGRAMS
    if not INTERPRETED:
        resident = torch.cuda.get_device_properties(device).multi_processor_count * tile["PERSISTENT"]
    return min(count, resident)


def aligned(*matrices: Tensor) -> bool:
    """Whether all are 16-byte aligned, rows too, so that they can be copied 16 bytes at a time."""
    return all(x.data_ptr() % 16 == 0 and x.shape[-1] * x.element_size() % 16 == 0 for x in matrices)


def fitted(committed: Tile, *matrices: Tensor) -> Tile:
    """The committed tile, with sizes for rows that begin anywhere where those of the matrices do."""
    return committed if aligned(*matrices) else {**committed, **ANYWHERE}


def described(tile: Tile, *matrices: Tensor) -> bool:
    """Whether the tile asks for tensor descriptors and all matrices can have one."""
    return bool(tile["DESCRIPTORS"]) and aligned(*matrices)


def argument(x: Tensor, rows: int, columns: int, described: bool) -> Any:
    """A matrix as a kernel takes it: its descriptor, or itself."""
    if not described:
        return x
    # not x.stride(): contiguous tensors have any stride along an axis of length 1
    return TensorDescriptor(x, list(x.shape), [x.shape[1], 1], [rows, columns])


def argument_type(name: str, rows: int, columns: int, described: bool) -> str:
    """The type of `argument` in a Specialisation, from Triton's name of the elements' type."""
    return f"tensordesc<{name}[{rows}, {columns}]>" if described else f"*{name}"


def candidates(architecture: int, itemsize: int) -> Iterator[Tile]:
    """Tiles worth timing on an architecture for operands of `itemsize` bytes."""
    descriptors = int(tiles.has_descriptors(architecture))
    shapes = ((64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 4), (128, 128, 8), (128, 256, 8), (256, 128, 8))
    for (BLOCK_M, BLOCK_N, num_warps), row_bytes, num_stages, persistent in itertools.product(
        shapes, (64, 128), (2, 3, 4, 5), range(1 + descriptors)
    ):
        # a persistent program loads its next tile while the last one leaves through shared memory
        stored_bytes = persistent * BLOCK_M * BLOCK_N * itemsize
        needed_bytes = num_stages * (BLOCK_M + BLOCK_N) * row_bytes + stored_bytes
        if needed_bytes < tiles.SHARED_MEMORY_BYTES[architecture]:
            yield {
                **{"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_K": row_bytes // itemsize, "GROUP_M": 8},
                **{"DESCRIPTORS": descriptors, "PERSISTENT": persistent},
                **{"num_warps": num_warps, "num_stages": num_stages},
            }
