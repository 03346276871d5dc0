"""Linear layers on 8-bit operands: y = f(x_scale weight_scale (x weight^T) + bias), f GELU, a residual add, or both.

int8 products are summed in int32, exactly; float8 (e4m3) products in float32, where a tile says SPLIT by adding up the
blocks of K outside the matrix unit, whose own sums are narrower. Scales, bias, GELU and residual are float32; then y is
rounded once, to a float, or back to 8 bits with a scale known beforehand, so that the next layer reads bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import checks, gemm, tiles
from segmenter_kernels.quantize import FLOAT8_ARCHITECTURE, LARGEST, float8_supported, one_scale, saturated
from segmenter_kernels.specialisation import TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OPS = {torch.int8: "linear_int8", torch.float8_e4m3fn: "linear_fp8"}
TILE_KEYS = (*gemm.TILE_KEYS, "SPLIT")
FLAGS = (*tiles.FLAGS, "SPLIT")
MAX_K = 2**17 - 1  # 128 * 128 * MAX_K still fits an int32


@triton.jit
def _tile(
    tile, x, weight, x_scale_ptr, weight_scale_ptr, bias_ptr, residual, out, out_scale_ptr, M, N, K,
    INTEGER: tl.constexpr, PER_ROW: tl.constexpr, GELU: tl.constexpr, EXACT: tl.constexpr, RESIDUAL: tl.constexpr,
    LARGEST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, SPLIT: tl.constexpr, DESCRIPTORS: tl.constexpr, OUT_DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    start_m, start_n = gemm.place(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    if PER_ROW:
        row = start_m + tl.arange(0, BLOCK_M)
        x_scale = tl.load(x_scale_ptr + row, row < M, 0.0)[:, None]
    else:
        x_scale = tl.load(x_scale_ptr)
    total = gemm.product(
        x, weight, x_scale, start_m, start_n, M, N, K,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, DESCRIPTORS, INTEGER, SPLIT,
    )  # fmt: skip
    scale = gemm.load_row(weight_scale_ptr, start_n, N, BLOCK_N)
    if not SPLIT:
        scale *= x_scale
    y = total.to(tl.float32) * scale
    y += gemm.load_row(bias_ptr, start_n, N, BLOCK_N)
    if GELU:
        y = gemm.gelu(y, EXACT)
    if RESIDUAL:
        y += gemm.load_tile(residual, start_m, start_n, M, N, BLOCK_M, BLOCK_N, OUT_DESCRIPTORS)
    if LARGEST:
        y = saturated(y * (1.0 / tl.load(out_scale_ptr)), LARGEST, INTEGER)
    gemm.store_tile(y, out, start_m, start_n, M, N, BLOCK_M, BLOCK_N, OUT_DESCRIPTORS)


@triton.jit(do_not_specialize=["M"])
def _quantized_linear(
    x, weight, x_scale_ptr, weight_scale_ptr, bias_ptr, residual, out, out_scale_ptr, M, N, K,
    INTEGER: tl.constexpr, PER_ROW: tl.constexpr, GELU: tl.constexpr, EXACT: tl.constexpr, RESIDUAL: tl.constexpr,
    LARGEST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, SPLIT: tl.constexpr, DESCRIPTORS: tl.constexpr, OUT_DESCRIPTORS: tl.constexpr,
    PERSISTENT: tl.constexpr,
):  # fmt: skip
    if PERSISTENT:
        for tile in tl.range(
            tl.program_id(0), tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N), tl.num_programs(0), flatten=True
        ):
            _tile(
                tile, x, weight, x_scale_ptr, weight_scale_ptr, bias_ptr, residual, out, out_scale_ptr, M, N, K,
                INTEGER, PER_ROW, GELU, EXACT, RESIDUAL, LARGEST,
                BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, EVEN_K, SPLIT, DESCRIPTORS, OUT_DESCRIPTORS,
            )  # fmt: skip
    else:
        _tile(
            tl.program_id(0), x, weight, x_scale_ptr, weight_scale_ptr, bias_ptr, residual, out, out_scale_ptr, M, N, K,
            INTEGER, PER_ROW, GELU, EXACT, RESIDUAL, LARGEST,
            BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, EVEN_K, SPLIT, DESCRIPTORS, OUT_DESCRIPTORS,
        )  # fmt: skip


def linear_int8(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    tile: Tile | None = None,
) -> Tensor:
    """A linear layer of int8 x and weight, for inference: `x_scale weight_scale (x weight^T) + bias`, and more.

    Args:
        x, weight: [..., I] and [O, I], contiguous int8, I at most MAX_K.
        x_scale: float32, one (shape [] or [1]) or one a row ([...]).
        weight_scale: [O] float32, one an output channel.
        bias: [O], fp16, bf16 or fp32.
        gelu: whether the exact (erf) GELU follows.
        residual: [..., O] in `dtype`, added after that; None for none.
        out_scale: one float32; the result is then rounded to int8 in steps of it. It is multiplied by the reciprocal,
            where `quantize` divides: one within a few ulp of the middle of a step may go to either side.
        dtype: of the result without `out_scale`: fp16, bf16 or fp32.
        tile: sizes of a program's part (TILE_KEYS, num_warps, num_stages); None takes the committed one.

    Returns:
        [..., O] in `dtype`, or in int8 with `out_scale`.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, or a gradient would be needed.
    """
    return _checked(torch.int8, x, weight, x_scale, weight_scale, bias, gelu, residual, out_scale, dtype, tile)


def linear_fp8(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    tile: Tile | None = None,
) -> Tensor:
    """As `linear_int8` with x and weight in float8 (e4m3), on GPUs of compute capability 8.9 or newer.

    Raises:
        ValueError: as `linear_int8`, or an older GPU.
    """
    kind = torch.float8_e4m3fn
    return _checked(kind, x, weight, x_scale, weight_scale, bias, gelu, residual, out_scale, dtype, tile)


def _checked(
    kind: torch.dtype,
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    gelu: bool,
    residual: Tensor | None,
    out_scale: Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None,
) -> Tensor:
    op = OPS[kind]
    K = checks.rows(op, x, MAX_K)
    checks.same_dtype(op, (kind,), x=x, weight=weight)
    checks.shape(op, "weight", weight, (-1, K))
    N = weight.shape[0]
    checks.require(N > 0, op, f"weight {list(weight.shape)}: want at least one output channel")
    checks.shape(op, "weight_scale", weight_scale, (N,))
    checks.shape(op, "bias", bias, (N,))
    checks.same_dtype(op, (torch.float32,), weight_scale=weight_scale, x_scale=x_scale)
    checks.same_dtype(op, checks.FLOATS, bias=bias)
    checks.require(dtype in checks.FLOATS, op, f"dtype {dtype}: want torch.float16, torch.bfloat16 or torch.float32")
    if x_scale.numel() != 1 or x_scale.dim() > 1:
        checks.shape(op, "x_scale", x_scale, x.shape[:-1])
    tensors = {"x": x, "weight": weight, "x_scale": x_scale, "weight_scale": weight_scale, "bias": bias}
    if residual is not None:
        checks.shape(op, "residual", residual, (*x.shape[:-1], N))
        checks.same_dtype(op, (dtype,), residual=residual)
        tensors["residual"] = residual
    if out_scale is not None:
        one_scale(op, "out_scale", out_scale)
        tensors["out_scale"] = out_scale
    checks.on_gpu(op, **tensors)
    checks.contiguous(op, **tensors)
    checks.inference_only(op, **tensors)
    if kind == torch.float8_e4m3fn:
        float8_supported(op, x.device)
    return _run(x, weight, x_scale, weight_scale, bias, gelu, residual, out_scale, dtype, tile)


def _run(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    gelu: bool,
    residual: Tensor | None,
    out_scale: Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None,
) -> Tensor:
    N, K = weight.shape
    M = x.numel() // K
    committed = _tile_of(x.dtype, gemm.size_of(M, N), x.device)
    out = x.new_empty(*x.shape[:-1], N, dtype=dtype if out_scale is None else x.dtype)
    fitted = gemm.fitted(committed, x, weight, out, *([] if residual is None else [residual]))
    tile = tiles.chosen(OPS[x.dtype], tile, fitted, flags=FLAGS)
    if not M:
        return out
    rows, result = x.view(M, K), out.view(M, N)
    other = result if residual is None else residual.view(M, N)
    BLOCK_M, BLOCK_N, BLOCK_K = tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_K"]
    operands, results = gemm.described(tile, rows, weight), gemm.described(tile, other, result)
    _quantized_linear[(gemm.programs(M, N, tile, x.device),)](
        gemm.argument(rows, BLOCK_M, BLOCK_K, operands),
        gemm.argument(weight, BLOCK_N, BLOCK_K, operands),
        *(x_scale, weight_scale, bias),
        gemm.argument(other, BLOCK_M, BLOCK_N, results),
        gemm.argument(result, BLOCK_M, BLOCK_N, results),
        x_scale if out_scale is None else out_scale,
        *(M, N, K),
        INTEGER=x.dtype == torch.int8,
        PER_ROW=x_scale.numel() != 1,
        GELU=gelu,
        EXACT=out.dtype == torch.float32,
        RESIDUAL=residual is not None,
        LARGEST=0 if out_scale is None else LARGEST[x.dtype],
        EVEN_K=K % BLOCK_K == 0,
        OUT_DESCRIPTORS=results,
        **{key: tile[key] for key in TILE_KEYS} | {"DESCRIPTORS": operands},
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
    )
    return out


def _tile_of(kind: torch.dtype, size: str, device: torch.device) -> Tile:
    if checks.INTERPRETED and kind == torch.float8_e4m3fn:
        # the interpreter counts as an architecture without float8, and has it
        return tiles.of_architecture(OPS[kind], size, FLOAT8_ARCHITECTURE)
    return tiles.of_device(OPS[kind], size, device)


@dataclass(frozen=True)
class _Form:
    """What a compiled form does: one x scale a row or one in all, GELU, a residual add, 8 bits out."""

    name: str
    per_row: bool = True
    gelu: bool = False
    residual: bool = False
    requantised: bool = False


# qkv and fc1; fc2 where fc1 leaves 8 bits
_DEPLOYED_FORMS = {
    torch.int8: (_Form("row"), _Form("row_gelu", gelu=True)),
    torch.float8_e4m3fn: (
        _Form("row"),
        _Form("row_gelu_requantised", gelu=True, requantised=True),
        _Form("tensor_residual", per_row=False, residual=True),
    ),
}


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture, float16 around them."""
    for kind, op in OPS.items():
        if kind == torch.float8_e4m3fn and architecture < FLOAT8_ARCHITECTURE:
            continue
        for form in _DEPLOYED_FORMS[kind]:
            for size in gemm.SIZES:
                yield _specialisation(kind, form, size, tiles.of_architecture(op, size, architecture))


def _specialisation(kind: torch.dtype, form: _Form, size: str, tile: Tile) -> Specialisation:
    described = bool(tile["DESCRIPTORS"])
    BLOCK_M, BLOCK_N, BLOCK_K = tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_K"]
    inner = TYPE_NAMES[kind]
    outer = inner if form.requantised else "fp16"
    pointers = set() if described else {"x", "weight", "residual", "out"}
    scales = ("x_scale_ptr", "weight_scale_ptr", "out_scale_ptr")
    return Specialisation(
        name=f"{OPS[kind]}_{form.name}_{size}",
        kernel=_quantized_linear,
        types={
            "x": gemm.argument_type(inner, BLOCK_M, BLOCK_K, described),
            "weight": gemm.argument_type(inner, BLOCK_N, BLOCK_K, described),
            **dict.fromkeys(scales[:2], "*fp32"),
            "bias_ptr": "*fp16",
            "residual": gemm.argument_type(outer, BLOCK_M, BLOCK_N, described),
            "out": gemm.argument_type(outer, BLOCK_M, BLOCK_N, described),
            **{"out_scale_ptr": "*fp32", "M": "i32", "N": "i32", "K": "i32"},
        },
        constants={
            **{key: tile[key] for key in TILE_KEYS},
            **{"INTEGER": kind == torch.int8, "PER_ROW": form.per_row, "GELU": form.gelu, "EXACT": False},
            **{"RESIDUAL": form.residual, "LARGEST": LARGEST[kind] if form.requantised else 0},
            **{"EVEN_K": True, "OUT_DESCRIPTORS": described},
        },
        aligned=frozenset({*scales, "bias_ptr", "N", "K"} | pointers),
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
        matrix=True,
        asynchronous=True,
    )
