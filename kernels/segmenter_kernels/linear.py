"""Linear layers whose epilogue is fused: y = f(x weight^T + bias), f the exact (erf) GELU or `residual + .`.

The product is summed in float32 and rounded once, after f, where the eager pair rounds twice. The backward pass of
`linear_gelu` computes the product again and stores grad * GELU'(product) in one pass instead of keeping the product;
the products that follow are torch.matmul's, as are those of the other ops.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from segmenter_kernels import checks, gemm, tiles
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "linear"


@triton.jit
def _tile(
    tile, x, weight, bias_ptr, extra, out, M, N, K, EPILOGUE: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr, OUT_DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    start_m, start_n = gemm.place(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    one = tl.where(M > 0, 1.0, 0.0)
    y = gemm.product(
        x, weight, one, start_m, start_n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, DESCRIPTORS, False, EXACT
    )
    y += gemm.load_row(bias_ptr, start_n, N, BLOCK_N)
    if EPILOGUE == "gelu":
        y = gemm.gelu(y, EXACT)
    if EPILOGUE == "residual":
        y += gemm.load_tile(extra, start_m, start_n, M, N, BLOCK_M, BLOCK_N, OUT_DESCRIPTORS)
    if EPILOGUE == "gelu_grad":
        y = gemm.gelu_slope(y) * gemm.load_tile(extra, start_m, start_n, M, N, BLOCK_M, BLOCK_N, OUT_DESCRIPTORS)
    gemm.store_tile(y, out, start_m, start_n, M, N, BLOCK_M, BLOCK_N, OUT_DESCRIPTORS)


@triton.jit(do_not_specialize=["M"])
def _linear(
    x, weight, bias_ptr, extra, out, M, N, K, EPILOGUE: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr, OUT_DESCRIPTORS: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    if PERSISTENT:
        for tile in tl.range(
            tl.program_id(0), tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N), tl.num_programs(0), flatten=True
        ):
            _tile(
                tile, x, weight, bias_ptr, extra, out, M, N, K, EPILOGUE, EXACT,
                BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, EVEN_K, DESCRIPTORS, OUT_DESCRIPTORS,
            )  # fmt: skip
    else:
        _tile(
            tl.program_id(0), x, weight, bias_ptr, extra, out, M, N, K, EPILOGUE, EXACT,
            BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, EVEN_K, DESCRIPTORS, OUT_DESCRIPTORS,
        )  # fmt: skip


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile | None = None) -> Tensor:
    """`gelu(x weight^T + bias)` with the exact (erf) GELU, with gradients.

    Args:
        x: [..., C], contiguous, fp16, bf16 or fp32.
        weight, bias: [O, C] and [O], of the same dtype.
        tile: sizes of a program's part (gemm.TILE_KEYS, num_warps, num_stages); None takes the committed one.

    Returns:
        [..., O], like x.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above.
    """
    return _checked("linear_gelu", "gelu", x, weight, bias, None, tile)


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, tile: Tile | None = None) -> Tensor:
    """`residual + x weight^T + bias`, with gradients.

    Args:
        x: [..., I], contiguous, fp16, bf16 or fp32.
        weight, bias, residual: [C, I], [C] and [..., C], of the same dtype.
        tile: as for `linear_gelu`.

    Returns:
        [..., C], like x.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above.
    """
    return _checked("linear_residual", "residual", x, weight, bias, residual, tile)


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile | None = None) -> Tensor:
    """`x weight^T + bias` with nothing after it, with gradients; arguments and errors as for `linear_gelu`."""
    return _checked("linear", "none", x, weight, bias, None, tile)


def _checked(
    op: str, epilogue: str, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, tile: Tile | None
) -> Tensor:
    checks.tensor(op, x=x)
    checks.require(x.dim() >= 1 and x.shape[-1] > 0, op, f"x {list(x.shape)}: want rows of at least one channel")
    checks.shape(op, "weight", weight, (-1, x.shape[-1]))
    N = weight.shape[0]
    checks.require(N > 0, op, f"weight {list(weight.shape)}: want at least one output channel")
    checks.shape(op, "bias", bias, (N,))
    tensors = {"x": x, "weight": weight, "bias": bias}
    if residual is not None:
        checks.shape(op, "residual", residual, (*x.shape[:-1], N))
        tensors["residual"] = residual
    checks.same_dtype(op, checks.FLOATS, **tensors)
    checks.on_gpu(op, **tensors)
    checks.contiguous(op, **tensors)
    if checks.needs_gradient(*tensors.values()):
        return _Linear.apply(x, weight, bias, residual, epilogue, tile)
    return _run(x, weight, bias, residual, epilogue, tile)


def case_of(epilogue: str, M: int, N: int, dtype: torch.dtype) -> str:
    """The name of a problem in the tile data.

    GELU takes time of its own, and its products are the shallow ones; its slope takes registers of its own.
    """
    kind = epilogue if epilogue in ("gelu", "gelu_grad") else "plain"
    return "fp32" if dtype == torch.float32 else f"{kind}_{gemm.size_of(M, N)}"


def _run(x: Tensor, weight: Tensor, bias: Tensor, extra: Tensor | None, epilogue: str, tile: Tile | None) -> Tensor:
    N, K = weight.shape
    M = x.numel() // K
    committed = tiles.of_device(OP, case_of(epilogue, M, N, x.dtype), x.device)
    out = x.new_empty(*x.shape[:-1], N)
    tile = tiles.chosen(OP, tile, gemm.fitted(committed, x, weight, out, *([] if extra is None else [extra])))
    if not M:
        return out
    rows, result = x.view(M, K), out.view(M, N)
    other = result if extra is None else extra.view(M, N)
    BLOCK_M, BLOCK_N, BLOCK_K = tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_K"]
    operands, results = gemm.described(tile, rows, weight), gemm.described(tile, other, result)
    _linear[(gemm.programs(M, N, tile, x.device),)](
        gemm.argument(rows, BLOCK_M, BLOCK_K, operands),
        gemm.argument(weight, BLOCK_N, BLOCK_K, operands),
        bias,
        gemm.argument(other, BLOCK_M, BLOCK_N, results),
        gemm.argument(result, BLOCK_M, BLOCK_N, results),
        *(M, N, K),
        EPILOGUE=epilogue,
        EXACT=x.dtype == torch.float32,
        EVEN_K=K % BLOCK_K == 0,
        OUT_DESCRIPTORS=results,
        **{key: tile[key] for key in gemm.TILE_KEYS} | {"DESCRIPTORS": operands},
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
    )
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, epilogue: str, tile: Tile | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.epilogue, ctx.tile = epilogue, tile
        return _run(x, weight, bias, residual, epilogue, tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        want_x, want_weight, want_bias, want_residual = ctx.needs_input_grad[:4]
        inner = grad
        if ctx.epilogue == "gelu":
            inner = _run(x, weight, bias, grad.contiguous(), "gelu_grad", ctx.tile)
        flat = inner.reshape(-1, weight.shape[0])
        grad_x = inner @ weight if want_x else None
        grad_weight = flat.mT @ x.view(-1, weight.shape[1]) if want_weight else None
        grad_bias = flat.sum(dim=0) if want_bias else None
        return grad_x, grad_weight, grad_bias, grad if want_residual else None, None, None


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture."""
    for dtype in DEPLOYED:
        for epilogue, case in (("gelu", "gelu"), ("residual", "plain")):
            for size in gemm.SIZES:
                tile = tiles.of_architecture(OP, f"{case}_{size}", architecture)
                yield _specialisation(TYPE_NAMES[dtype], epilogue, size, tile)


def _specialisation(kind: str, epilogue: str, size: str, tile: Tile) -> Specialisation:
    described = bool(tile["DESCRIPTORS"])
    BLOCK_M, BLOCK_N, BLOCK_K = tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_K"]
    pointers = set() if described else {"x", "weight", "extra", "out"}
    return Specialisation(
        name=f"{OP}_{epilogue}_{kind}_{size}",
        kernel=_linear,
        types={
            "x": gemm.argument_type(kind, BLOCK_M, BLOCK_K, described),
            "weight": gemm.argument_type(kind, BLOCK_N, BLOCK_K, described),
            "bias_ptr": f"*{kind}",
            "extra": gemm.argument_type(kind, BLOCK_M, BLOCK_N, described),
            "out": gemm.argument_type(kind, BLOCK_M, BLOCK_N, described),
            **dict.fromkeys(("M", "N", "K"), "i32"),
        },
        constants={
            **{key: tile[key] for key in gemm.TILE_KEYS},
            **{"EPILOGUE": epilogue, "EXACT": False, "EVEN_K": True, "OUT_DESCRIPTORS": described},
        },
        aligned=frozenset({"bias_ptr", "N", "K"} | pointers),
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
        matrix=True,
        asynchronous=True,
    )
