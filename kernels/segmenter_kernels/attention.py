"""Attention on packed projections: out = softmax(q k^T D^-0.5) v, a head at a time, without the [N, N] matrix.

Softmax is online (Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1), in base 2, in float32.
Keys come in tiles of BLOCK_N, and what is left in steps of BLOCK_T; whole tiles are never masked. Query rows come in
tiles of BLOCK_M; with SMALL a rest of at most BLOCK_T rows gets a small program of its own, the last of the grid, and
without it a whole tile, which is faster where tiles are small. One machine code serves every N, though for few, short
and long sequences other tiles are faster.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.tools.tensor_descriptor import TensorDescriptor

from segmenter_kernels import checks, dependent, tiles
from segmenter_kernels.attention_backward import gradients
from segmenter_kernels.packed import HEAD_DIMS, LOG2_E, case, parts, piece
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "attention"
SHORT, LONG = 640, 1700  # tokens
FEW = 264  # programs of 64 rows, two on each multiprocessor of an H100: then each may have more shared memory
KINDS = ("", "_few", "_short", "_long")  # of 16-bit sequences, in the tile data
_SOURCES = ("query", "query_rest", "keys", "keys_rest", "narrow", "narrow_rest")


@triton.jit
def _halves(x):
    """The first and the second half of a block's columns."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def _products(q, k, one):
    """q k^T. In float32 every 16 channels are summed apart, as one long sum loses more.

    `one`, which must be known only at run time, keeps the compiler from joining the sums.
    """
    if q.dtype == tl.float32 and q.shape[1] > 16:
        q_left, q_right = _halves(q)
        k_left, k_right = _halves(k)
        return _products(q_left, k_left, one) + _products(q_right, k_right, one) * one
    else:
        return tl.dot(q, k.T, input_precision="ieee")


@triton.jit
def _step(
    q, q_rest, x, x_rest, image, row, column, N, A, top, total, mixed, mixed_rest,
    D: tl.constexpr, D_REST: tl.constexpr, COLUMNS: tl.constexpr, INSIDE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Takes COLUMNS more keys into the running maximum, the sums and the mix of values.

    `total` [rows, 8] sums every eighth key, which a thread does without the others; they meet once, at the end.
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
    total = total * rescale[:, None] + tl.sum(tl.reshape(p, [p.shape[0], COLUMNS // 8, 8]), 1)
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
    DESCRIPTORS: tl.constexpr,
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
    total = tl.zeros([ROWS, 8], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    whole = N // BLOCK_N * BLOCK_N
    for s in tl.range(0, whole, BLOCK_N):
        top, total, mixed, mixed_rest = _step(
            q, q_rest, keys, keys_rest, image, s, column, N, A, top, total, mixed, mixed_rest,
            D, D_REST, BLOCK_N, True, DESCRIPTORS,
        )  # fmt: skip
    # a loop, though it may run once: straight-line code here makes ptxas serialise the loop above
    for s in tl.range(whole, N, BLOCK_T):
        top, total, mixed, mixed_rest = _step(
            q, q_rest, narrow, narrow_rest, image, s, column, N, A, top, total, mixed, mixed_rest,
            D, D_REST, BLOCK_T, False, DESCRIPTORS,
        )  # fmt: skip
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
    SMALL: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    # programs of one head follow each other, so that its keys and values are read once from memory
    program = tl.program_id(0)
    if not SMALL:  # noqa: SIM114 -- known when compiling, so that then there is one path
        _rows(
            query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr,
            program // tiles_a_head, program % tiles_a_head * BLOCK_M, N, A,
            D, D_REST, BLOCK_M, BLOCK_N, BLOCK_T, DESCRIPTORS,
        )  # fmt: skip
    elif program < whole_tiles:
        _rows(
            query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr,
            program // tiles_a_head, program % tiles_a_head * BLOCK_M, N, A,
            D, D_REST, BLOCK_M, BLOCK_N, BLOCK_T, DESCRIPTORS,
        )  # fmt: skip
    else:
        _rows(
            narrow, narrow_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr,
            program - whole_tiles, tiles_a_head * BLOCK_M, N, A,
            D, D_REST, BLOCK_T, BLOCK_N, BLOCK_T, DESCRIPTORS,
        )  # fmt: skip


@triton.jit
def _from_pointers(
    qkv_ptr, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
    D: tl.constexpr, D_REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    SMALL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    dependent.begin(EARLY)
    _program(
        qkv_ptr, qkv_ptr, qkv_ptr, qkv_ptr, qkv_ptr, qkv_ptr, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
        D, D_REST, BLOCK_M, BLOCK_N, BLOCK_T, SMALL, False,
    )  # fmt: skip


@triton.jit
def _from_descriptors(
    query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
    D: tl.constexpr, D_REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    SMALL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    dependent.begin(EARLY)
    _program(
        query, query_rest, keys, keys_rest, narrow, narrow_rest, out_ptr, lse_ptr, N, A, tiles_a_head, whole_tiles,
        D, D_REST, BLOCK_M, BLOCK_N, BLOCK_T, SMALL, True,
    )  # fmt: skip


def attention(qkv: Tensor, heads: int, dropout: float = 0.0, *, tile: Tile | None = None) -> Tensor:
    """Multi-head self-attention `softmax(q k^T D^-0.5) v` on packed projections, with gradients.

    Args:
        qkv: [B, N, 3C], packed as (3, A, D) along the last axis, contiguous, fp16, bf16 or fp32.
        heads: A; D = C / A is 32, 64, 80, 96 or 128.
        dropout: must be 0; `segmenter.ops.attention` has dropout.
        tile: BLOCK_M queries, BLOCK_N keys, BLOCK_T of a rest of either, SMALL and DESCRIPTORS (0 or 1), num_warps,
            num_stages; None takes the committed one.

    Returns:
        [B, N, C], like qkv.

    Raises:
        ValueError: shape, dtype, device, strides, head dimension or dropout differ from the above.

    Source: Vaswani et al. 2017, equation 1.
    """
    D = _head_dim(qkv, heads)
    checks.require(dropout == 0.0, OP, f"dropout {dropout}: this kernel has none; pass 0, or use segmenter.ops")
    tile = tile or _tile(qkv, D)
    if checks.needs_gradient(qkv):
        return _Attention.apply(qkv, heads, tile)
    return _run(qkv, heads, tile, None)


def attention_backward(grad: Tensor, qkv: Tensor, heads: int, *, tile: Tile | None = None) -> Tensor:
    """Gradient of `attention` with respect to qkv; the output is computed again.

    Args:
        grad: [B, N, C], the gradient with respect to the output, contiguous, of qkv's dtype.
        qkv, heads: as given to `attention`.
        tile: of the backward kernels, BLOCK_M, BLOCK_N, BLOCK_T, num_warps, num_stages; None takes the committed one.

    Returns:
        [B, N, 3C], like qkv.

    Raises:
        ValueError: as `attention`; or the gradient's shape, dtype, device or strides differ from the above.
    """
    D = _head_dim(qkv, heads)
    checks.shape(OP, "grad", grad, (*qkv.shape[:2], heads * D))
    checks.same_dtype(OP, checks.FLOATS, grad=grad, qkv=qkv)
    checks.on_gpu(OP, grad=grad, qkv=qkv)
    checks.contiguous(OP, grad=grad)
    out, lse = _with_sums(qkv, heads, _tile(qkv, D))
    return gradients(grad, qkv, out, lse, heads, tile)


def _head_dim(qkv: Tensor, heads: int) -> int:
    """D. Raises ValueError when qkv is not what the kernels take."""
    checks.shape(OP, "qkv", qkv, (-1, -1, -1))
    checks.same_dtype(OP, checks.FLOATS, qkv=qkv)
    width = qkv.shape[2]
    divides = heads > 0 and width % (3 * heads) == 0
    checks.require(divides, OP, f"qkv {list(qkv.shape)} and {heads} heads: want a width of 3 x heads x head dimension")
    D = width // (3 * heads)
    sizes = ", ".join(map(str, HEAD_DIMS))
    checks.require(D in HEAD_DIMS, OP, f"head dimension {D}: want one of {sizes}; use segmenter.ops.attention")
    checks.on_gpu(OP, qkv=qkv)
    checks.contiguous(OP, qkv=qkv)
    return D


def case_of(dtype: torch.dtype, D: int, N: int, sequences: int) -> str:
    """The name in the tile data of `sequences` (images times heads) of N tokens; float32, for checking, has but one."""
    kind = "_long" if N >= LONG else "_short" if N <= SHORT else ""
    if sequences * triton.cdiv(N, 64) <= FEW:
        kind = "_few"
    return case(dtype, D) + (kind if dtype.itemsize == 2 else "")


def _tile(qkv: Tensor, D: int) -> Tile:
    B, N, width = qkv.shape
    return tiles.of_device(OP, case_of(qkv.dtype, D, N, B * width // (3 * D)), qkv.device)


def _with_sums(qkv: Tensor, A: int, tile: Tile) -> tuple[Tensor, Tensor]:
    """The output, and for the gradient the base-2 logarithm of every row's sum, [B, A, N] float32."""
    lse = torch.empty(qkv.shape[0], A, qkv.shape[1], dtype=torch.float32, device=qkv.device)
    return _run(qkv, A, tile, lse), lse


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, A: int, tile: Tile) -> Tensor:
        out, lse = _with_sums(qkv, A, tile)
        ctx.save_for_backward(qkv, out, lse)
        ctx.A = A
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        qkv, out, lse = ctx.saved_tensors
        return gradients(grad.contiguous(), qkv, out, lse, ctx.A), None, None


def _run(qkv: Tensor, A: int, tile: Tile, lse: Tensor | None) -> Tensor:
    B, N, width = qkv.shape
    out = torch.empty(B, N, width // 3, dtype=qkv.dtype, device=qkv.device)
    if qkv.numel() == 0:
        return out
    D, D_REST = parts(width // (3 * A))
    BLOCK_M, BLOCK_N, BLOCK_T = tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_T"]
    rest = N % BLOCK_M
    small = bool(tile["SMALL"]) and 0 < rest <= BLOCK_T
    tiles_a_head = N // BLOCK_M + (rest > 0 and not small)
    sources: list[Tensor | TensorDescriptor | None] = [qkv]
    if tile["DESCRIPTORS"]:
        aligned = qkv.data_ptr() % 16 == 0
        checks.require(aligned, OP, "qkv starts at an address that is no multiple of 16 bytes; call .clone() first")
        boxes = [(rows, columns) for rows in (BLOCK_M, BLOCK_N, BLOCK_T) for columns in (D, D_REST)]
        sources = [_descriptor(qkv, *box) if box[1] else None for box in boxes]
    kernel = _from_descriptors if tile["DESCRIPTORS"] else _from_pointers
    kernel[(B * A * (tiles_a_head + small),)](
        *sources,
        *(out, lse, N, A, tiles_a_head, B * A * tiles_a_head),
        **{"D": D, "D_REST": D_REST, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_T": BLOCK_T},
        SMALL=tile["SMALL"],
        **dependent.options(qkv.device),
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
    )
    return out


def _descriptor(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    # not x.stride(): contiguous tensors have any stride along an axis of length 1
    _, N, width = x.shape
    return TensorDescriptor(x, list(x.shape), [N * width, width, 1], [1, rows, columns])


def specialisations(architecture: int, kind: str = "") -> Iterator[Specialisation]:
    """The forms engines launch on an architecture, one for each dtype and head dimension, with the tiles of a kind.

    Plugins launch those of the default whatever they are given.
    """
    for dtype in DEPLOYED:
        for head_dim in HEAD_DIMS:
            tile = tiles.of_architecture(OP, case(dtype, head_dim) + kind, architecture)
            D, D_REST = parts(head_dim)
            sizes = {name: tile[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_T")}
            sources, absent = {"qkv_ptr": f"*{TYPE_NAMES[dtype]}"}, {}
            if tile["DESCRIPTORS"]:
                boxes = zip(
                    _SOURCES, [(rows, columns) for rows in sizes.values() for columns in (D, D_REST)], strict=True
                )
                kinds = {name: f"tensordesc<{TYPE_NAMES[dtype]}[1, {r}, {c}]>" if c else None for name, (r, c) in boxes}
                sources = {name: kind for name, kind in kinds.items() if kind}
                absent = {name: None for name, kind in kinds.items() if not kind}
            yield Specialisation(
                name=f"{OP}_{TYPE_NAMES[dtype]}_d{head_dim}",
                kernel=_from_descriptors if tile["DESCRIPTORS"] else _from_pointers,
                types={
                    **sources,
                    "out_ptr": f"*{TYPE_NAMES[dtype]}",
                    **dict.fromkeys(("N", "A", "tiles_a_head", "whole_tiles"), "i32"),
                },
                constants={
                    **{**absent, "lse_ptr": None, "D": D, "D_REST": D_REST, **sizes, "SMALL": tile["SMALL"]},
                    **dependent.NOT_EARLY,
                },
                aligned=frozenset({"qkv_ptr", "out_ptr"} & {*sources, "out_ptr"}),
                num_warps=tile["num_warps"],
                num_stages=tile["num_stages"],
                matrix=True,
                asynchronous=True,
            )


def candidates(architecture: int, dtype: torch.dtype, D: int) -> Iterator[Tile]:
    """Tiles worth timing, as far as their shared memory fits; registers and time decide the rest.

    Fewer keys a tile leave registers for a second program on a multiprocessor, whose softmax then hides behind the
    other's products; more keys read the queries less often. Consumer Blackwell has descriptors, and Triton (3.8) copies
    by them one tile at a time there, so it gets pointers.
    """
    descriptors = tiles.has_descriptors(architecture) and architecture != 120 and dtype.itemsize == 2
    shapes: list[tuple[int, int, int]]  # BLOCK_M, BLOCK_N, num_warps
    rests: tuple[int, ...] = (16, 32)
    stages: tuple[int, ...] = (2, 3)
    small: tuple[int, ...] = (0, 1)
    if dtype.itemsize == 4:
        shapes, rests, stages, small = [(64, 32, 8), (64, 64, 8), (32, 32, 8), (32, 32, 4)], (16,), (2,), (1,)
    elif descriptors:
        shapes = [(64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8)]
        rests = (16, 32, 64)
    else:
        shapes = [(128, 64, 4), (128, 64, 8), (128, 32, 8), (128, 128, 8), (64, 64, 4), (64, 32, 4)]
    for (BLOCK_M, BLOCK_N, num_warps), BLOCK_T, num_stages, SMALL in product(shapes, rests, stages, small):
        if (BLOCK_M + 2 * num_stages * BLOCK_N) * D * dtype.itemsize <= tiles.SHARED_MEMORY_BYTES[architecture]:
            yield {
                "BLOCK_M": BLOCK_M,
                "BLOCK_N": BLOCK_N,
                "BLOCK_T": BLOCK_T,
                "SMALL": SMALL,
                "DESCRIPTORS": int(descriptors),
                "num_warps": num_warps,
                "num_stages": num_stages,
            }
