"""The kernels of `attention`: softmax is online, in base 2, in float32."""

import triton
import triton.language as tl

from segmenter_kernels.blocks import halves
from segmenter_kernels.packed import LOG2_E, piece


@triton.jit
def _products(q, k, one):
    """q k^T. In float32 every 16 channels are summed apart, as one long sum loses more.

    `one`, which must be known only at run time, keeps the compiler from joining the sums; a side without it would be
    what the other's product begins from.
    """
    if q.dtype == tl.float32 and q.shape[1] > 16:
        q_left, q_right = halves(q)
        k_left, k_right = halves(k)
        return _products(q_left, k_left, one) * one + _products(q_right, k_right, one) * one
    else:
        return tl.dot(q, k.T, input_precision="ieee")


@triton.jit
def _step(
    q, q_rest, x, x_rest, image, row, column, N, A, top, total, mixed, mixed_rest,
    D: tl.constexpr, D_REST: tl.constexpr, COLUMNS: tl.constexpr, INSIDE: tl.constexpr, PARTIAL: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Takes COLUMNS more keys into the running maximum, the sums and the mix of values.

    With PARTIAL `total` [rows, 8] sums every eighth key, which a thread of a wgmma does without the others; the sums
    meet once, at the end.
    """
    SCALE: tl.constexpr = LOG2_E * (D + D_REST) ** -0.5
    C = A * (D + D_REST)
    k = piece(x, image, row, C + column, N, 3 * C, COLUMNS, D, INSIDE, DESCRIPTORS)
    one = tl.where(N > 0, 1.0, 0.0)
    scores = _products(q, k, one)
    if D_REST:
        k_rest = piece(x_rest, image, row, C + column + D, N, 3 * C, COLUMNS, D_REST, INSIDE, DESCRIPTORS)
        if k.dtype == tl.float32:
            scores += _products(q_rest, k_rest, one) * one
        else:
            scores = tl.dot(q_rest, k_rest.T, scores)
    if not INSIDE:
        scores = tl.where((row + tl.arange(0, COLUMNS) < N)[None, :], scores, -float("inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * SCALE)
    p = tl.exp2(scores * SCALE - higher[:, None])
    rescale = tl.exp2(top - higher)
    if PARTIAL:
        total = total * rescale[:, None] + tl.sum(tl.reshape(p, [p.shape[0], COLUMNS // 8, 8]), 1)
    else:
        total = total * rescale + tl.sum(p, 1)
    v = piece(x, image, row, 2 * C + column, N, 3 * C, COLUMNS, D, INSIDE, DESCRIPTORS)
    p = p.to(v.dtype)
    mixed = tl.dot(p, v, mixed * rescale[:, None], input_precision="ieee")
    if D_REST:
        v_rest = piece(x_rest, image, row, 2 * C + column + D, N, 3 * C, COLUMNS, D_REST, INSIDE, DESCRIPTORS)
        mixed_rest = tl.dot(p, v_rest, mixed_rest * rescale[:, None], input_precision="ieee")
    return higher, total, mixed, mixed_rest


@triton.jit
def _rows(
    query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr, head, first, N, A,
    D: tl.constexpr, D_REST: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    PARTIAL: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of the output of one head, from row `first` on."""
    image, column = head // A, head % A * (D + D_REST)
    C = A * (D + D_REST)
    row = first + tl.arange(0, ROWS)
    q = piece(query, image, first, column, N, 3 * C, ROWS, D, False, DESCRIPTORS)
    q_rest, mixed_rest = q, 0.0
    if D_REST:
        q_rest = piece(query_rest, image, first, column + D, N, 3 * C, ROWS, D_REST, False, DESCRIPTORS)
        mixed_rest = tl.zeros([ROWS, D_REST], tl.float32)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS, 8] if PARTIAL else [ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    whole = N // BLOCK_N * BLOCK_N
    for s in tl.range(0, whole, BLOCK_N):
        top, total, mixed, mixed_rest = _step(
            q, q_rest, keys, keys_rest, image, s, column, N, A, top, total, mixed, mixed_rest,
            D, D_REST, BLOCK_N, True, PARTIAL, DESCRIPTORS,
        )  # fmt: skip
    # a loop, though it may run once: straight-line code here makes ptxas serialise the loop above
    for s in tl.range(whole, N, BLOCK_T):
        top, total, mixed, mixed_rest = _step(
            q, q_rest, narrow, narrow_rest, image, s, column, N, A, top, total, mixed, mixed_rest,
            D, D_REST, BLOCK_T, False, PARTIAL, DESCRIPTORS,
        )  # fmt: skip
    if PARTIAL:
        total = tl.sum(total, 1)
    keep = row < N
    to = out_ptr + (tl.cast(image, tl.int64) * N + row[:, None]) * C + column  # [ROWS, 1]
    mixed = mixed / total[:, None]
    tl.store(to + tl.arange(0, D)[None, :], mixed.to(out_ptr.dtype.element_ty), keep[:, None])
    if D_REST:
        mixed_rest = mixed_rest / total[:, None]
        tl.store(to + D + tl.arange(0, D_REST)[None, :], mixed_rest.to(out_ptr.dtype.element_ty), keep[:, None])
    if lse_ptr is not None:
        tl.store(lse_ptr + tl.cast(head, tl.int64) * N + row, top + tl.log2(total), keep)


@triton.jit
def _program(
    query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
    D: tl.constexpr, D_REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    SMALL: tl.constexpr, PARTIAL: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    # programs of one head follow each other, so that its keys and values are read once from memory
    program = tl.program_id(0)
    if not SMALL:  # noqa: SIM114 -- known when compiling, so that then there is one path
        _rows(
            query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr,
            program // tiles_a_head, program % tiles_a_head * BLOCK_M, N, A,
            D, D_REST, BLOCK_M, BLOCK_N, BLOCK_T, PARTIAL, DESCRIPTORS,
        )  # fmt: skip
    elif program < whole_tiles:
        _rows(
            query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr,
            program // tiles_a_head, program % tiles_a_head * BLOCK_M, N, A,
            D, D_REST, BLOCK_M, BLOCK_N, BLOCK_T, PARTIAL, DESCRIPTORS,
        )  # fmt: skip
    else:
        _rows(
            narrow, narrow_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr,
            program - whole_tiles, tiles_a_head * BLOCK_M, N, A,
            D, D_REST, BLOCK_T, BLOCK_N, BLOCK_T, PARTIAL, DESCRIPTORS,
        )  # fmt: skip


# not compiled anew for an N, a number of heads or a count of tiles of 1 or of a multiple of 16
@triton.jit(do_not_specialize=["N", "A", "tiles_a_head", "whole_tiles"])
def from_pointers(
    qkv_ptr, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
    D: tl.constexpr, D_REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    SMALL: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    _program(
        qkv_ptr, qkv_ptr, qkv_ptr, qkv_ptr, qkv_ptr, qkv_ptr, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
        D, D_REST, BLOCK_M, BLOCK_N, BLOCK_T, SMALL, PARTIAL, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["N", "A", "tiles_a_head", "whole_tiles"])
def from_descriptors(
    query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
    D: tl.constexpr, D_REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    SMALL: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    _program(
        query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
        D, D_REST, BLOCK_M, BLOCK_N, BLOCK_T, SMALL, PARTIAL, True,
    )  # fmt: skip
