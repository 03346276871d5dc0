"""Floats to 8 bits: q = round(x / scale), saturated, with one scale for a tensor or one for each row.

int8 is symmetric, -127 to 127; float8 e4m3 goes to 448. Rounding is to nearest even and the division exact, so that
the result has the bits of the plain PyTorch expression, as long as all are numbers. A row that holds a NaN or an
infinity gets NaN as its scale, and is NaN once it is multiplied back; with one scale for the tensor, an infinity
becomes the largest number, and a NaN becomes 0 in int8, which has none.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from segmenter_kernels import checks, tiles
from segmenter_kernels.specialisation import TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "quantize"
MAX_C = 8192
LARGEST = {torch.int8: 127, torch.float8_e4m3fn: 448}
DEPLOYED_WIDTHS = (192, 384, 768, 1024)
FLOAT8_ARCHITECTURE = 89  # the oldest that converts to and multiplies float8


@triton.jit
def saturated(y, LARGEST: tl.constexpr, INTEGER: tl.constexpr):
    """y in float32, limited to what 8 bits hold, rounded when they hold integers; the conversion that follows is exact
    for integers and rounds to nearest even for float8."""
    y = tl.minimum(
        tl.maximum(y, -LARGEST, propagate_nan=tl.PropagateNan.ALL), LARGEST, propagate_nan=tl.PropagateNan.ALL
    )
    if INTEGER:
        return libdevice.rint(tl.where(y == y, y, 0.0))
    else:
        return y


@triton.jit
def row_scales(x, LARGEST: tl.constexpr, BLOCK_M: tl.constexpr):
    """What each row of x, float32 [BLOCK_M, ...], is divided by to be saturated: [BLOCK_M]."""
    # the sum is 0, or NaN where the row holds a NaN or an infinity, which a maximum would drop
    scale = tl.div_rn(tl.max(tl.abs(x), 1) + tl.sum(x * 0.0, 1), tl.full([BLOCK_M], LARGEST, tl.float32))
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def divided(x, scale, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """x / `row_scales` of x, float32 [BLOCK_M, BLOCK_C], exact where the quotient passes 2^-20, so that 8 bits are.

    By one division a row and, for each element, two products and two fused steps (Markstein), without branches.
    """
    # reciprocals of the smallest scales are infinite
    enlarge = tl.where(scale < 2.0**-60, 2.0**64, 1.0)
    scale = scale * enlarge
    inverse = tl.div_rn(tl.full([BLOCK_M], 1.0, tl.float32), scale)
    scale, inverse = tl.broadcast_to(scale[:, None], [BLOCK_M, BLOCK_C]), inverse[:, None]
    x = x * enlarge[:, None]
    y = x * inverse
    # of the two ways to write the error, the one that leaves a zero its sign
    error = tl.fma(y, scale, x * -1.0) * -1.0  # Triton before 3.8 takes -x for 0 - x, which gives no zero below 0
    return tl.fma(error, tl.broadcast_to(inverse, [BLOCK_M, BLOCK_C]), y)


@triton.jit(do_not_specialize=["M"])
def _quantize(
    x_ptr, q_ptr, scale_ptr, M, C, PER_ROW: tl.constexpr, LARGEST: tl.constexpr, INTEGER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.arange(0, BLOCK_C)
    keep = (row < M)[:, None] & (col < C)[None, :]
    at = row.to(tl.int64)[:, None] * C + col[None, :]  # [BLOCK_M, BLOCK_C]
    x = tl.load(x_ptr + at, keep, 0.0).to(tl.float32)
    if PER_ROW:
        scale = row_scales(x, LARGEST, BLOCK_M)
        tl.store(scale_ptr + row, scale, row < M)
        y = divided(x, scale, BLOCK_M, BLOCK_C)
    else:
        y = tl.div_rn(x, tl.full([BLOCK_M, BLOCK_C], 1.0, tl.float32) * tl.load(scale_ptr))
    tl.store(q_ptr + at, saturated(y, LARGEST, INTEGER).to(q_ptr.dtype.element_ty), keep)


def quantize(
    x: Tensor, *, scale: Tensor | None = None, dtype: torch.dtype = torch.int8, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """x in 8 bits and the scale that leads back, for inference: x is about `q * scale`.

    Args:
        x: [..., C], contiguous, fp16, bf16 or fp32.
        scale: float32 of one element, known beforehand; None takes each row's largest magnitude.
        dtype: torch.int8, or torch.float8_e4m3fn on GPUs of compute capability 8.9 or newer.
        tile: BLOCK_M rows a program, num_warps; None takes the committed one.

    Returns:
        q like x in `dtype`, and `scale` as given, or [...] in float32 (1 for a row of zeros).

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, C > MAX_C, or x needs a gradient.
    """
    C = checks.rows(OP, x, MAX_C)
    checks.same_dtype(OP, checks.FLOATS, x=x)
    checks.require(dtype in LARGEST, OP, f"dtype {dtype}: want torch.int8 or torch.float8_e4m3fn")
    checks.on_gpu(OP, x=x)
    checks.contiguous(OP, x=x)
    checks.inference_only(OP, x=x)
    if scale is not None:
        one_scale(OP, "scale", scale)
        checks.on_gpu(OP, x=x, scale=scale)
    if dtype == torch.float8_e4m3fn:
        float8_supported(OP, x.device)
    M = x.numel() // C
    q = torch.empty_like(x, dtype=dtype)
    scales = x.new_empty(x.shape[:-1], dtype=torch.float32) if scale is None else scale
    BLOCK_C = triton.next_power_of_2(C)
    tile = tiles.chosen(OP, tile, tiles.of_device(OP, str(BLOCK_C), x.device))
    if M:
        _quantize[(triton.cdiv(M, tile["BLOCK_M"]),)](
            *(x, q, scales, M, C),
            PER_ROW=scale is None,
            LARGEST=LARGEST[dtype],
            INTEGER=dtype == torch.int8,
            BLOCK_M=tile["BLOCK_M"],
            BLOCK_C=BLOCK_C,
            num_warps=tile["num_warps"],
        )
    return q, scales


def one_scale(op: str, name: str, scale: Tensor) -> None:
    """Raises ValueError unless the scale is one float32."""
    checks.tensor(op, **{name: scale})
    checks.require(
        scale.numel() == 1 and scale.dim() <= 1 and scale.dtype == torch.float32,
        op,
        f"{name} is {scale.dtype} {list(scale.shape)}: want one torch.float32, shape [] or [1]",
    )


def float8_supported(op: str, device: torch.device) -> None:
    """Raises ValueError on a GPU without float8 (the interpreter has it)."""
    architecture = FLOAT8_ARCHITECTURE if checks.INTERPRETED else tiles.architecture_of(device)
    checks.require(
        architecture >= FLOAT8_ARCHITECTURE,
        op,
        f"float8 on a GPU of compute capability {architecture / 10}: want 8.9 (Ada) or newer; use torch.int8",
    )


def candidates(architecture: int, BLOCK_C: int) -> Iterator[Tile]:
    """Tiles worth timing for rows of up to BLOCK_C channels."""
    for num_warps in (1, 2, 4, 8):
        for BLOCK_M in (1, 2, 4, 8, 16, 32):
            # 4 to 64 elements a thread
            if 4 * 32 * num_warps <= BLOCK_M * BLOCK_C <= 64 * 32 * num_warps:
                yield {"BLOCK_M": BLOCK_M, "num_warps": num_warps}


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture: 8-bit engines keep float16 between their layers."""
    for dtype in LARGEST:
        if dtype == torch.float8_e4m3fn and architecture < FLOAT8_ARCHITECTURE:
            continue
        for BLOCK_C in sorted({triton.next_power_of_2(C) for C in DEPLOYED_WIDTHS}):
            tile = tiles.of_architecture(OP, str(BLOCK_C), architecture)
            for per_row in (False, True):
                yield Specialisation(
                    name=f"{OP}_{TYPE_NAMES[dtype]}_{'row' if per_row else 'tensor'}_c{BLOCK_C}",
                    kernel=_quantize,
                    types={
                        **{"x_ptr": "*fp16", "q_ptr": f"*{TYPE_NAMES[dtype]}", "scale_ptr": "*fp32"},
                        **{"M": "i32", "C": "i32"},
                    },
                    constants={
                        **{"PER_ROW": per_row, "LARGEST": LARGEST[dtype], "INTEGER": dtype == torch.int8},
                        **{"BLOCK_M": tile["BLOCK_M"], "BLOCK_C": BLOCK_C},
                    },
                    aligned=frozenset(("x_ptr", "q_ptr", "scale_ptr", "C")),
                    num_warps=tile["num_warps"],
                    num_stages=1,
                )
