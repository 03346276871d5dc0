"""Attention on packed projections: out = softmax(q k^T D^-0.5) v, a head at a time, without the [N, N] matrix.

Softmax is online (Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1), in base 2, in float32.
Keys come in tiles of BLOCK_N, and what is left in steps of BLOCK_T; whole tiles are never masked. Query rows come in
tiles of BLOCK_M; with SMALL a rest of at most BLOCK_T rows gets a small program of its own, the last of the grid, and
without it a whole tile, which is faster where tiles are small. One machine code serves every N and A, so that what is
tested at one length and number of heads runs at another, though for few, short and long sequences other tiles are
faster.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.tools.tensor_descriptor import TensorDescriptor

from segmenter_kernels import checks, tiles
from segmenter_kernels.attention_backward import gradients
from segmenter_kernels.attention_backward import tile_of as backward_tile
from segmenter_kernels.attention_forward import from_descriptors, from_pointers
from segmenter_kernels.packed import HEAD_DIMS, case, parts
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "attention"
SHORT, LONG = 640, 1700  # tokens
# programs of 64 rows, two on each multiprocessor of an H100: then each may have more shared memory. On other
# architectures the tiles of few sequences are the default's so far, wherever the line is
FEW = 264
KINDS = ("", "_few", "_short", "_long")  # of 16-bit sequences, in the tile data
_SOURCES = ("query", "query_rest", "keys", "keys_rest", "narrow", "narrow_rest")


def attention(qkv: Tensor, heads: int, dropout: float = 0.0, *, tile: Tile | None = None) -> Tensor:
    """Multi-head self-attention `softmax(q k^T D^-0.5) v` on packed projections, with gradients.

    Args:
        qkv: [B, N, 3C], packed as (3, A, D) along the last axis, contiguous, fp16, bf16 or fp32.
        heads: A; D = C / A is 32, 64, 80, 96 or 128.
        dropout: must be 0; `segmenter.ops.attention` has dropout.
        tile: BLOCK_M queries, BLOCK_N keys, BLOCK_T of a rest of either, SMALL, PARTIAL and DESCRIPTORS (0 or 1),
            num_warps, num_stages; None takes the committed one.

    Returns:
        [B, N, C], like qkv.

    Raises:
        ValueError: shape, dtype, device, strides, head dimension or dropout differ from the above.

    Source: Vaswani et al. 2017, equation 1.
    """
    D = _head_dim(qkv, heads)
    checks.require(dropout == 0.0, OP, f"dropout {dropout}: this kernel has none; pass 0, or use segmenter.ops")
    tile = tiles.chosen(OP, tile, _tile(qkv, D))
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
    tile = backward_tile(qkv, D, tile)
    out, lse = _with_sums(qkv, heads, _tile(qkv, D))
    return gradients(grad, qkv, out, lse, heads, tile)


def _head_dim(qkv: Tensor, heads: int) -> int:
    """D. Raises ValueError when qkv is not what the kernels take."""
    checks.shape(OP, "qkv", qkv, (-1, -1, -1))
    checks.same_dtype(OP, checks.FLOATS, qkv=qkv)
    width = qkv.shape[2]
    divides = checks.whole(heads) and heads > 0 and width % (3 * heads) == 0
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
        tile = backward_tile(qkv, out.shape[2] // ctx.A)
        return gradients(grad.contiguous(), qkv, out, lse, ctx.A, tile), None, None


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
    kernel = from_descriptors if tile["DESCRIPTORS"] else from_pointers
    kernel[(B * A * (tiles_a_head + small),)](
        *sources,
        *(out, lse, N, A, tiles_a_head, B * A * tiles_a_head),
        **{"D": D, "D_REST": D_REST, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_T": BLOCK_T},
        SMALL=tile["SMALL"],
        PARTIAL=tile["PARTIAL"],
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
                of_type = f"tensordesc<{TYPE_NAMES[dtype]}[1, "
                described = {name: f"{of_type}{r}, {c}]>" if c else None for name, (r, c) in boxes}
                sources = {name: each for name, each in described.items() if each}
                absent = {name: None for name, each in described.items() if not each}
            yield Specialisation(
                name=f"{OP}_{TYPE_NAMES[dtype]}_d{head_dim}",
                kernel=from_descriptors if tile["DESCRIPTORS"] else from_pointers,
                types={
                    **sources,
                    "out_ptr": f"*{TYPE_NAMES[dtype]}",
                    **dict.fromkeys(("N", "A", "tiles_a_head", "whole_tiles"), "i32"),
                },
                constants={
                    **{**absent, "lse_ptr": None, "D": D, "D_REST": D_REST, **sizes},
                    **{"SMALL": tile["SMALL"], "PARTIAL": tile["PARTIAL"]},
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
    other's products; more keys read the queries less often. PARTIAL sums want registers that other architectures do not
    have left. Consumer Blackwell has descriptors, and Triton (3.8) copies by them one tile at a time there, so it gets
    pointers.
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
                "PARTIAL": int(architecture == tiles.HOPPER and descriptors),
                "DESCRIPTORS": int(descriptors),
                "num_warps": num_warps,
                "num_stages": num_stages,
            }
