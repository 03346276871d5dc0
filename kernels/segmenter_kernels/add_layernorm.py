"""Residual add and LayerNorm in one pass: z = x + r, y = (z - mean) / sqrt(var + eps) * weight + bias.

Statistics are float32 and over the rounded z, as the eager pair computes them. A row must fit in one program. The same
kernel is LayerNorm alone, without r and z, and writes y in 8 bits, with a scale a row, for `layernorm_quantize`.
The backward pass recomputes the normalised row from z; weight and bias gradients are summed per program, then over
programs, so that two runs give the same bits.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from segmenter_kernels import checks, tiles
from segmenter_kernels.quantize import LARGEST, divided, row_scales, saturated
from segmenter_kernels.rounded import inverse_root, mean
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "add_layernorm"
MAX_C = 8192
DEPLOYED_WIDTHS = (192, 384, 768, 1024)
_PARTIAL_ROWS = 128  # programs of the backward pass, each summing weight gradients over its rows


@triton.jit
def _forward(
    x_ptr, r_ptr, weight_ptr, bias_ptr, z_ptr, y_ptr, scale_ptr, M, C, eps, LARGEST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # r_ptr and z_ptr are None together; scale_ptr is None unless y is in 8 bits
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.arange(0, BLOCK_C)
    keep = (row < M)[:, None] & (col < C)[None, :]
    EXACT: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    at = row.to(tl.int64)[:, None] * C + col[None, :]  # [BLOCK_M, BLOCK_C]
    # asked for along with the rows: after the sums, whose barriers no load passes, another wait would begin
    weight, bias = tl.load(weight_ptr + col, col < C, 0.0), tl.load(bias_ptr + col, col < C, 0.0)
    z = tl.load(x_ptr + at, keep, 0.0)
    if r_ptr is not None:
        z = (z.to(tl.float32) + tl.load(r_ptr + at, keep, 0.0).to(tl.float32)).to(z_ptr.dtype.element_ty)
        tl.store(z_ptr + at, z, keep)
    z = z.to(tl.float32)
    # a masked lane would add the squared mean to the variance
    centred = tl.where(keep, z - mean(tl.sum(z, 1), C, EXACT)[:, None], 0.0)
    inverse = inverse_root(mean(tl.sum(centred * centred, 1), C, EXACT) + eps, EXACT)
    y = centred * inverse[:, None] * weight.to(tl.float32)[None, :] + bias.to(tl.float32)[None, :]
    if scale_ptr is not None:
        y = y.to(x_ptr.dtype.element_ty).to(tl.float32)  # as it would have been stored
        scale = row_scales(y, LARGEST, BLOCK_M)
        tl.store(scale_ptr + row, scale, row < M)
        y = saturated(divided(y, scale, BLOCK_M, BLOCK_C), LARGEST, y_ptr.dtype.element_ty == tl.int8)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), keep)


@triton.jit
def _backward(
    z_ptr, grad_z_ptr, grad_y_ptr, weight_ptr, grad_x_ptr, partial_weight_ptr, partial_bias_ptr, M, C, eps,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    col = tl.arange(0, BLOCK_C)
    keep = col < C
    EXACT: tl.constexpr = z_ptr.dtype.element_ty == tl.float32
    weight = tl.load(weight_ptr + col, keep, 0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK_C], tl.float32)
    grad_bias = tl.zeros([BLOCK_C], tl.float32)
    for row in range(program, M, programs):
        at = tl.cast(row, tl.int64) * C + col  # [BLOCK_C]
        z = tl.load(z_ptr + at, keep, 0.0).to(tl.float32)
        grad_y = tl.load(grad_y_ptr + at, keep, 0.0).to(tl.float32)
        centred = tl.where(keep, z - mean(tl.sum(z, 0), C, EXACT), 0.0)
        inverse = inverse_root(mean(tl.sum(centred * centred, 0), C, EXACT) + eps, EXACT)
        normed = centred * inverse
        grad_normed = grad_y * weight
        projected = mean(tl.sum(grad_normed * normed, 0), C, EXACT)
        grad = (grad_normed - mean(tl.sum(grad_normed, 0), C, EXACT) - normed * projected) * inverse
        grad += tl.load(grad_z_ptr + at, keep, 0.0).to(tl.float32)
        tl.store(grad_x_ptr + at, grad.to(grad_x_ptr.dtype.element_ty), keep)
        grad_weight += grad_y * normed
        grad_bias += grad_y
    tl.store(partial_weight_ptr + program * C + col, grad_weight, keep)
    tl.store(partial_bias_ptr + program * C + col, grad_bias, keep)


def add_layernorm(
    x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Residual add and the LayerNorm after it, with gradients.

    Args:
        x, r: [..., C], contiguous, fp16, bf16 or fp32.
        weight, bias: [C], of the same dtype.
        eps: added to the variance, a float, 0 or above.
        tile: BLOCK_M rows a program, num_warps; None takes the committed one.

    Returns:
        `x + r` and `LayerNorm(x + r)`, both like x.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, C > MAX_C, eps is below 0 or not finite.
    """
    check(OP, x, r, weight, bias, eps)
    if checks.needs_gradient(x, r, weight, bias):
        return _AddLayerNorm.apply(x, r, weight, bias, eps, tile)
    z, y, _ = run(x, r, weight, bias, eps, tile)
    return z, y


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, tile: Tile | None = None) -> Tensor:
    """LayerNorm of rows; where a gradient is needed, PyTorch's.

    Args:
        x: [..., C], contiguous, fp16, bf16 or fp32.
        weight, bias, eps, tile: as `add_layernorm` takes them.

    Returns:
        `LayerNorm(x)`, like x.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, C > MAX_C, eps is below 0 or not finite.
    """
    check("layernorm", x, None, weight, bias, eps)
    if checks.needs_gradient(x, weight, bias):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return run(x, None, weight, bias, eps, tile)[1]


def check(op: str, x: Tensor, r: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> None:
    """Raises ValueError unless the arguments of an op with this kernel are what it takes."""
    C = checks.rows(op, x, MAX_C)
    tensors = {"x": x, "weight": weight, "bias": bias}
    if r is not None:
        checks.shape(op, "r", r, x.shape)
        tensors["r"] = r
    checks.shape(op, "weight", weight, (C,))
    checks.shape(op, "bias", bias, (C,))
    checks.same_dtype(op, checks.FLOATS, **tensors)
    checks.on_gpu(op, **tensors)
    checks.contiguous(op, **tensors)
    checks.epsilon(op, eps)


def run(
    x: Tensor,
    r: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    tile: Tile | None,
    kind: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launch on tensors that were checked: z (x itself without r), y, and its scales where it is of an 8-bit kind."""
    C = x.shape[-1]
    M = x.numel() // C
    z, y = x if r is None else torch.empty_like(x), torch.empty_like(x, dtype=kind or x.dtype)
    scale = None if kind is None else x.new_empty(x.shape[:-1], dtype=torch.float32)
    BLOCK_C = triton.next_power_of_2(C)
    tile = tiles.chosen(OP, tile, tiles.of_device(OP, str(BLOCK_C), x.device))
    if M:
        grid = (triton.cdiv(M, tile["BLOCK_M"]),)
        _forward[grid](
            *(x, r, weight, bias, None if r is None else z, y, scale, M, C, eps),
            LARGEST=0 if kind is None else LARGEST[kind],
            BLOCK_M=tile["BLOCK_M"],
            BLOCK_C=BLOCK_C,
            num_warps=tile["num_warps"],
        )
    return z, y, scale


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float, tile: Tile | None
    ) -> tuple[Tensor, Tensor]:
        z, y, _ = run(x, r, weight, bias, eps, tile)
        ctx.save_for_backward(z, weight)
        ctx.eps = eps
        return z, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        C = z.shape[-1]
        M = z.numel() // C
        programs = min(M, _PARTIAL_ROWS)
        grad_x = torch.empty_like(z)
        partial = torch.empty(2, programs, C, dtype=torch.float32, device=z.device)
        BLOCK_C = triton.next_power_of_2(C)
        if M:
            _backward[(programs,)](
                *(z, grad_z.contiguous(), grad_y.contiguous(), weight, grad_x, partial[0], partial[1], M, C, ctx.eps),
                BLOCK_C=BLOCK_C,
                num_warps=max(1, min(16, BLOCK_C // 256)),
            )
        grad_weight, grad_bias = partial.sum(dim=1).to(weight.dtype)
        return grad_x, grad_x, grad_weight, grad_bias, None, None


def candidates(architecture: int, case: str) -> Iterator[Tile]:
    """Tiles worth timing: at least 8 and at most 64 elements a thread."""
    for BLOCK_M in (1, 2, 4, 8, 16):
        for num_warps in (1, 2, 4, 8):
            if 8 <= BLOCK_M * int(case) // (32 * num_warps) <= 64:
                yield {"BLOCK_M": BLOCK_M, "num_warps": num_warps}


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture."""
    for dtype in DEPLOYED:
        for BLOCK_C in sorted({triton.next_power_of_2(C) for C in DEPLOYED_WIDTHS}):
            tile = tiles.of_architecture(OP, str(BLOCK_C), architecture)
            pointer = f"*{TYPE_NAMES[dtype]}"
            yield Specialisation(
                name=f"{OP}_{TYPE_NAMES[dtype]}_c{BLOCK_C}",
                kernel=_forward,
                types={
                    **dict.fromkeys(("x_ptr", "r_ptr", "weight_ptr", "bias_ptr", "z_ptr", "y_ptr"), pointer),
                    **{"M": "i32", "C": "i32", "eps": "fp32"},
                },
                constants={"scale_ptr": None, "LARGEST": 0, "BLOCK_M": tile["BLOCK_M"], "BLOCK_C": BLOCK_C},
                aligned=frozenset(("x_ptr", "r_ptr", "weight_ptr", "bias_ptr", "z_ptr", "y_ptr", "C")),
                num_warps=tile["num_warps"],
                num_stages=1,
            )
