"""Gradients of attention on packed projections, from its output and the logarithm of each row's sum, in two kernels.

With P = softmax(q k^T D^-0.5), dP = dO v^T and delta = rowsum(dO * O): dV = P^T dO, dS = P * (dP - delta),
dQ = dS k D^-0.5, dK = dS^T q D^-0.5 (Dao et al. 2022, algorithm 4). The first kernel owns tiles of queries and writes
delta and dQ; the second owns tiles of keys and writes dK and dV. P is computed again in both: nothing is added
atomically, so two runs give the same bits. Both read by plain pointers.

On Hopper 96 channels a head take tiles of 32 rows, which single warps multiply: tiles of 64 (wgmma) were wrong on an
H200, by Triton 3.6. Its PTX for them is right in tests/kernels/emulator, so what made them wrong is not known.
triton-lang/triton#10486 and #11366 tell of the like on Hopper: kernels of several `tl.dot`, an operand 32 wide,
num_warps=4, whose products sometimes read outside of shared memory ("Invalid __shared__ read"), in 3.7.1 too. Steps of
16 rows of the other side leave both kernels registers to spare, which 32 did not.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import tiles
from segmenter_kernels.packed import LOG2_E, case, parts, piece
from segmenter_kernels.tiles import Tile

OP = "attention_backward"


@triton.jit
def _for_queries(
    q, q_rest, g, g_rest, lse, delta, grad_q, grad_q_rest, qkv_ptr, image, row, column, N, C,
    D: tl.constexpr, D_REST: tl.constexpr, COLUMNS: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Adds what COLUMNS keys give to the gradient of a tile of queries."""
    SCALE: tl.constexpr = LOG2_E * (D + D_REST) ** -0.5
    k = piece(qkv_ptr, image, row, C + column, N, 3 * C, COLUMNS, D, INSIDE, False)
    v = piece(qkv_ptr, image, row, 2 * C + column, N, 3 * C, COLUMNS, D, INSIDE, False)
    scores = tl.dot(q, k.T, input_precision="ieee")
    grad_p = tl.dot(g, v.T, input_precision="ieee")
    if D_REST:
        k_rest = piece(qkv_ptr, image, row, C + column + D, N, 3 * C, COLUMNS, D_REST, INSIDE, False)
        v_rest = piece(qkv_ptr, image, row, 2 * C + column + D, N, 3 * C, COLUMNS, D_REST, INSIDE, False)
        scores = tl.dot(q_rest, k_rest.T, scores, input_precision="ieee")
        grad_p = tl.dot(g_rest, v_rest.T, grad_p, input_precision="ieee")
    if not INSIDE:
        # p of a key past the last would be exp2(-lse), infinite where all scores are far below 0
        scores = tl.where((row + tl.arange(0, COLUMNS) < N)[None, :], scores, -float("inf"))
    p = tl.exp2(scores * SCALE - lse[:, None])
    grad_scores = (p * (grad_p - delta[:, None])).to(k.dtype)
    grad_q = tl.dot(grad_scores, k, grad_q, input_precision="ieee")
    if D_REST:
        grad_q_rest = tl.dot(grad_scores, k_rest, grad_q_rest, input_precision="ieee")
    return grad_q, grad_q_rest


@triton.jit(do_not_specialize=["N", "A", "tiles_a_head"])
def _queries(
    qkv_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, grad_qkv_ptr, N, A, tiles_a_head,
    D: tl.constexpr, D_REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head, first = program // tiles_a_head, program % tiles_a_head * BLOCK_M
    image, column = head // A, head % A * (D + D_REST)
    C = A * (D + D_REST)
    row = first + tl.arange(0, BLOCK_M)
    keep = row < N
    q = piece(qkv_ptr, image, first, column, N, 3 * C, BLOCK_M, D, False, False)
    g = piece(grad_ptr, image, first, column, N, C, BLOCK_M, D, False, False)
    o = piece(out_ptr, image, first, column, N, C, BLOCK_M, D, False, False)
    delta = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    grad_q = tl.zeros([BLOCK_M, D], tl.float32)
    q_rest, g_rest, grad_q_rest = q, g, 0.0
    if D_REST:
        q_rest = piece(qkv_ptr, image, first, column + D, N, 3 * C, BLOCK_M, D_REST, False, False)
        g_rest = piece(grad_ptr, image, first, column + D, N, C, BLOCK_M, D_REST, False, False)
        o_rest = piece(out_ptr, image, first, column + D, N, C, BLOCK_M, D_REST, False, False)
        delta += tl.sum(g_rest.to(tl.float32) * o_rest.to(tl.float32), 1)
        grad_q_rest = tl.zeros([BLOCK_M, D_REST], tl.float32)
    at = tl.cast(head, tl.int64) * N + row  # [BLOCK_M]
    tl.store(delta_ptr + at, delta, keep)
    lse = tl.load(lse_ptr + at, keep, 0.0)
    whole = N // BLOCK_N * BLOCK_N
    for s in tl.range(0, whole, BLOCK_N):
        grad_q, grad_q_rest = _for_queries(
            q, q_rest, g, g_rest, lse, delta, grad_q, grad_q_rest, qkv_ptr, image, s, column, N, C,
            D, D_REST, BLOCK_N, True,
        )  # fmt: skip
    for s in tl.range(whole, N, BLOCK_T):
        grad_q, grad_q_rest = _for_queries(
            q, q_rest, g, g_rest, lse, delta, grad_q, grad_q_rest, qkv_ptr, image, s, column, N, C,
            D, D_REST, BLOCK_T, False,
        )  # fmt: skip
    _store(grad_qkv_ptr, grad_q, grad_q_rest, image, row, column, N, C, (D + D_REST) ** -0.5, D, D_REST)


@triton.jit
def _for_keys(
    k, k_rest, v, v_rest, grad_k, grad_k_rest, grad_v, grad_v_rest,
    qkv_ptr, grad_ptr, lse_ptr, delta_ptr, head, image, row, column, N, C,
    D: tl.constexpr, D_REST: tl.constexpr, COLUMNS: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Adds what COLUMNS queries give to the gradients of a tile of keys and values."""
    SCALE: tl.constexpr = LOG2_E * (D + D_REST) ** -0.5
    q = piece(qkv_ptr, image, row, column, N, 3 * C, COLUMNS, D, INSIDE, False)
    g = piece(grad_ptr, image, row, column, N, C, COLUMNS, D, INSIDE, False)
    scores = tl.dot(k, q.T, input_precision="ieee")
    grad_p = tl.dot(v, g.T, input_precision="ieee")
    if D_REST:
        q_rest = piece(qkv_ptr, image, row, column + D, N, 3 * C, COLUMNS, D_REST, INSIDE, False)
        g_rest = piece(grad_ptr, image, row, column + D, N, C, COLUMNS, D_REST, INSIDE, False)
        scores = tl.dot(k_rest, q_rest.T, scores, input_precision="ieee")
        grad_p = tl.dot(v_rest, g_rest.T, grad_p, input_precision="ieee")
    query = row + tl.arange(0, COLUMNS)
    at = tl.cast(head, tl.int64) * N + query  # [COLUMNS]
    # a query past the last gives nothing: its row of g is 0, and its row of dS is 1 * (0 - 0)
    lse = tl.load(lse_ptr + at, query < N, 0.0)
    delta = tl.load(delta_ptr + at, query < N, 0.0)
    p = tl.exp2(scores * SCALE - lse[None, :])
    grad_scores = (p * (grad_p - delta[None, :])).to(q.dtype)
    p = p.to(g.dtype)
    grad_v = tl.dot(p, g, grad_v, input_precision="ieee")
    grad_k = tl.dot(grad_scores, q, grad_k, input_precision="ieee")
    if D_REST:
        grad_v_rest = tl.dot(p, g_rest, grad_v_rest, input_precision="ieee")
        grad_k_rest = tl.dot(grad_scores, q_rest, grad_k_rest, input_precision="ieee")
    return grad_k, grad_k_rest, grad_v, grad_v_rest


@triton.jit(do_not_specialize=["N", "A", "tiles_a_head"])
def _keys(
    qkv_ptr, grad_ptr, lse_ptr, delta_ptr, grad_qkv_ptr, N, A, tiles_a_head,
    D: tl.constexpr, D_REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head, first = program // tiles_a_head, program % tiles_a_head * BLOCK_M
    image, column = head // A, head % A * (D + D_REST)
    C = A * (D + D_REST)
    k = piece(qkv_ptr, image, first, C + column, N, 3 * C, BLOCK_M, D, False, False)
    v = piece(qkv_ptr, image, first, 2 * C + column, N, 3 * C, BLOCK_M, D, False, False)
    grad_k = tl.zeros([BLOCK_M, D], tl.float32)
    grad_v = tl.zeros([BLOCK_M, D], tl.float32)
    k_rest, v_rest, grad_k_rest, grad_v_rest = k, v, 0.0, 0.0
    if D_REST:
        k_rest = piece(qkv_ptr, image, first, C + column + D, N, 3 * C, BLOCK_M, D_REST, False, False)
        v_rest = piece(qkv_ptr, image, first, 2 * C + column + D, N, 3 * C, BLOCK_M, D_REST, False, False)
        grad_k_rest = tl.zeros([BLOCK_M, D_REST], tl.float32)
        grad_v_rest = tl.zeros([BLOCK_M, D_REST], tl.float32)
    whole = N // BLOCK_N * BLOCK_N
    for s in tl.range(0, whole, BLOCK_N):
        grad_k, grad_k_rest, grad_v, grad_v_rest = _for_keys(
            k, k_rest, v, v_rest, grad_k, grad_k_rest, grad_v, grad_v_rest,
            qkv_ptr, grad_ptr, lse_ptr, delta_ptr, head, image, s, column, N, C, D, D_REST, BLOCK_N, True,
        )  # fmt: skip
    for s in tl.range(whole, N, BLOCK_T):
        grad_k, grad_k_rest, grad_v, grad_v_rest = _for_keys(
            k, k_rest, v, v_rest, grad_k, grad_k_rest, grad_v, grad_v_rest,
            qkv_ptr, grad_ptr, lse_ptr, delta_ptr, head, image, s, column, N, C, D, D_REST, BLOCK_T, False,
        )  # fmt: skip
    row = first + tl.arange(0, BLOCK_M)
    scale: tl.constexpr = (D + D_REST) ** -0.5
    _store(grad_qkv_ptr, grad_k, grad_k_rest, image, row, C + column, N, C, scale, D, D_REST)
    _store(grad_qkv_ptr, grad_v, grad_v_rest, image, row, 2 * C + column, N, C, 1.0, D, D_REST)


@triton.jit
def _store(
    grad_qkv_ptr, grad, grad_rest, image, row, column, N, C, scale: tl.constexpr,
    D: tl.constexpr, D_REST: tl.constexpr,
):  # fmt: skip
    kind = grad_qkv_ptr.dtype.element_ty
    keep = (row < N)[:, None]
    to = grad_qkv_ptr + (tl.cast(image, tl.int64) * N + row[:, None]) * (3 * C) + column  # [BLOCK_M, 1]
    tl.store(to + tl.arange(0, D)[None, :], (grad * scale).to(kind), keep)
    if D_REST:
        tl.store(to + D + tl.arange(0, D_REST)[None, :], (grad_rest * scale).to(kind), keep)


def tile_of(qkv: Tensor, head_dim: int, given: Tile | None = None) -> Tile:
    """The tile a caller gave, or the committed one. Raises ValueError where what was given is none of these kernels."""
    return tiles.chosen(OP, given, tiles.of_device(OP, case(qkv.dtype, head_dim), qkv.device))


def gradients(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, A: int, tile: Tile) -> Tensor:
    """The gradient of qkv [B, N, 3C], from that of the output [B, N, C], the output, and `lse` [B, A, N].

    `lse` is the base-2 logarithm of the sum of a row's exponentials, float32; the others are of one dtype, and all are
    contiguous. The tile has BLOCK_M rows that a program owns, BLOCK_N rows of the other side in a step, BLOCK_T of a
    rest, num_warps and num_stages.
    """
    B, N, width = qkv.shape
    head_dim = width // (3 * A)
    D, D_REST = parts(head_dim)
    grad_qkv, delta = torch.empty_like(qkv), torch.empty_like(lse)
    if qkv.numel() == 0:
        return grad_qkv
    tiles_a_head = triton.cdiv(N, tile["BLOCK_M"])
    grid = (B * A * tiles_a_head,)
    sizes = {"D": D, "D_REST": D_REST, **tile}
    # in this order: the second reads the delta of the first
    _queries[grid](qkv, out, grad, lse, delta, grad_qkv, N, A, tiles_a_head, **sizes)
    _keys[grid](qkv, grad, lse, delta, grad_qkv, N, A, tiles_a_head, **sizes)
    return grad_qkv
