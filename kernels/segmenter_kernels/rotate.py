"""Rotary positions on packed projections, in one pass: queries and keys turned by the angles of their tokens.

    x, y = qkv[b, n, part, a, j], qkv[b, n, part, a, j + D / 2]          part: query, key;  j < D / 2
    x cos[n, j] - y sin[n, j]  and  y cos[n, j] + x sin[n, j]  take their places;  values stay as they are

Sums are float32 and rounded once. The gradient is turned back: the same by the opposite angles.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from segmenter_kernels import checks, tiles
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "rotate"
TILE: Tile = {"BLOCK": 256, "num_warps": 2}  # one for all GPUs: every value is read and written once, whatever it is
DEPLOYED_HEAD_WIDTH = 64


@triton.jit
def _kernel(qkv_ptr, cos_ptr, sin_ptr, out_ptr, N, pairs, turning, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """pairs: of a token, of which the first `turning` are of queries and keys."""
    blocks = tl.cdiv(pairs, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    pair = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    keep, turns = pair < pairs, pair < turning
    at = row * (2 * pairs) + pair // HALF * (2 * HALF) + pair % HALF
    angle = row % N * HALF + pair % HALF
    one, other = tl.load(qkv_ptr + at, keep, 0.0), tl.load(qkv_ptr + at + HALF, keep, 0.0)
    cos = tl.load(cos_ptr + angle, turns, 1.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, turns, 0.0).to(tl.float32)
    x, y = one.to(tl.float32), other.to(tl.float32)
    # not by an angle of 0, which would spread a NaN or an infinity among values
    tl.store(out_ptr + at, tl.where(turns, (x * cos - y * sin).to(one.dtype), one), keep)
    tl.store(out_ptr + at + HALF, tl.where(turns, (y * cos + x * sin).to(one.dtype), other), keep)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, *, tile: Tile | None = None) -> Tensor:
    """Queries and keys turned by the angles of their tokens, with a gradient of qkv.

    Args:
        qkv: [B, N, 3C], contiguous, fp16, bf16 or fp32, packed as (3, heads, D) along the last axis; D even.
        cos, sin: [N, D / 2], contiguous, of qkv's dtype or fp32; without gradients.
        heads: how many the channels are of.
        tile: BLOCK pairs of channels a program, num_warps; None takes `TILE`.

    Returns:
        [B, N, 3C] like qkv.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, or cos or sin need a gradient.
    """
    checks.shape(OP, "qkv", qkv, (-1, -1, -1))
    _, N, C3 = qkv.shape
    whole = checks.whole(heads) and heads > 0 and C3 > 0 and C3 % (6 * max(heads, 1)) == 0
    checks.require(whole, OP, f"qkv {list(qkv.shape)}: want 3 x {heads} heads of an even number of channels")
    half = C3 // (6 * heads)
    checks.same_dtype(OP, checks.FLOATS, qkv=qkv)
    dtype = checks.same_dtype(OP, checks.FLOATS, cos=cos, sin=sin)
    checks.require(
        dtype in (qkv.dtype, torch.float32), OP, f"cos is {dtype} and qkv {qkv.dtype}; want one dtype, or float32"
    )
    checks.shape(OP, "cos", cos, (N, half))
    checks.shape(OP, "sin", sin, (N, half))
    checks.on_gpu(OP, qkv=qkv, cos=cos, sin=sin)
    checks.contiguous(OP, qkv=qkv, cos=cos, sin=sin)
    checks.inference_only(OP, cos=cos, sin=sin)
    if checks.needs_gradient(qkv):
        turned: Tensor = _Rotate.apply(qkv, cos, sin, half, tile)
        return turned
    return _run(qkv, cos, sin, half, tile)


def _run(qkv: Tensor, cos: Tensor, sin: Tensor, half: int, tile: Tile | None) -> Tensor:
    B, N, C3 = qkv.shape
    out, tile = torch.empty_like(qkv), tiles.chosen(OP, tile, TILE)
    pairs = C3 // 2
    if B * N:
        _kernel[(triton.cdiv(pairs, tile["BLOCK"]) * B * N,)](
            *(qkv, cos, sin, out, N, pairs, C3 // 3),
            HALF=half,
            BLOCK=tile["BLOCK"],
            num_warps=tile["num_warps"],
        )
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, half: int, tile: Tile | None) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.half, ctx.tile = half, tile
        return _run(qkv, cos, sin, half, tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _run(grad.contiguous(), cos, -sin, ctx.half, ctx.tile), None, None, None, None


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture."""
    pointers = ("qkv_ptr", "cos_ptr", "sin_ptr", "out_ptr")
    for dtype in DEPLOYED:
        yield Specialisation(
            name=f"{OP}_{TYPE_NAMES[dtype]}_d{DEPLOYED_HEAD_WIDTH}",
            kernel=_kernel,
            types=dict.fromkeys(pointers, f"*{TYPE_NAMES[dtype]}") | dict.fromkeys(("N", "pairs", "turning"), "i32"),
            constants={"HALF": DEPLOYED_HEAD_WIDTH // 2, "BLOCK": TILE["BLOCK"]},
            aligned=frozenset((*pointers, "pairs", "turning")),
            num_warps=TILE["num_warps"],
            num_stages=1,
        )
