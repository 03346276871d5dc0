"""What Segmenter asks of each op: its shapes and the work in them, for tuning and benchmarks."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import triton

from segmenter_kernels import gemm, reference
from segmenter_kernels.attention import case_of as attention_case
from segmenter_kernels.image_workloads import (
    CLASSES,
    PATCH,
    merge_windows,
    normalize,
    patch_embed,
    resize,
    upsample_argmax,
)
from segmenter_kernels.linear import case_of as linear_case
from segmenter_kernels.mask_scores import case_of as mask_scores_case
from segmenter_kernels.quantize import FLOAT8_ARCHITECTURE
from segmenter_kernels.rotate import TILE as ROTATE_TILE
from segmenter_kernels.workload import Normal, Workload

WIDTHS = {"Ti": 192, "S": 384, "B": 768, "L": 1024}
TOKENS = (197, 577, 785, 1025, 1174, 1601, 1750, 4097)  # class token, patches and, in the decoder, classes


def attention(B: int, N: int, A: int, D: int, dtype: torch.dtype) -> Workload:
    return Workload(
        op="attention",
        batch=B,
        shape=f"{B} x {N}, {A} x {D}",
        dtype=dtype,
        draw=lambda normal: (normal(B, N, 3 * A * D), A),
        flops=4 * B * A * N * N * D,
        traffic_bytes=4 * B * N * A * D * dtype.itemsize,
        key="attention",
        case=attention_case(dtype, D, N, B * A),
    )


def rotate(B: int, N: int, A: int, D: int, dtype: torch.dtype) -> Workload:
    def draw(normal: Normal) -> tuple[Any, ...]:
        angle = normal(N, D // 2)
        return normal(B, N, 3 * A * D), angle.cos(), angle.sin(), A

    return Workload(
        op="rotate",
        batch=B,
        shape=f"{B} x {N}, {A} x {D}",
        dtype=dtype,
        draw=draw,
        # of each pair of a query's and a key's channels
        flops=6 * B * N * A * D,
        traffic_bytes=(6 * B * N * A * D + N * D) * dtype.itemsize,
        key="",
        case="",
        only=ROTATE_TILE,
    )


def norm(op: str, B: int, N: int, C: int, dtype: torch.dtype) -> Workload:
    """`add_layernorm`, `layernorm`, or `layernorm_quantize` to int8 after a residual: forms of one kernel."""
    itemsize = dtype.itemsize
    # an element's operations, and its bytes; in 8 bits a row has a scale too
    flops, value_bytes, row_bytes = {
        "add_layernorm": (8, 4 * itemsize, 0),
        "layernorm": (7, 2 * itemsize, 0),
        "layernorm_quantize": (10, 3 * itemsize + 1, 4),
    }[op]

    def draw(normal: Normal) -> tuple[Any, ...]:
        if op == "add_layernorm":
            return normal(B, N, C), normal(B, N, C), normal(C), normal(C), 1e-5
        arguments = normal(B, N, C), normal(C), normal(C), 1e-5
        return arguments if op == "layernorm" else (*arguments, normal(B, N, C))

    return Workload(
        op=op,
        batch=B,
        shape=f"{B} x {N} x {C}",
        dtype=dtype,
        draw=draw,
        flops=flops * B * N * C,
        traffic_bytes=B * N * (C * value_bytes + row_bytes),
        key="add_layernorm",
        case=str(triton.next_power_of_2(C)),
        plain_op=reference.layernorm_quantize if op == "layernorm_quantize" else None,
    )


def linear(op: str, B: int, N: int, C: int, dtype: torch.dtype) -> Workload:
    """`linear_gelu` (C to 4C) or `linear_residual` (4C to C)."""
    inner, outer = (C, 4 * C) if op == "linear_gelu" else (4 * C, C)

    def draw(normal: Normal) -> tuple[Any, ...]:
        tensors = normal(B, N, inner), normal(outer, inner, scale=inner**-0.5), normal(outer)
        return tensors if op == "linear_gelu" else (*tensors, normal(B, N, outer))

    return Workload(
        op=op,
        batch=B,
        shape=f"{B} x {N}, {inner} to {outer}",
        dtype=dtype,
        draw=draw,
        flops=8 * B * N * C * C,
        traffic_bytes=((5 if op == "linear_gelu" else 6) * B * N * C + 4 * C * C) * dtype.itemsize,
        key="linear",
        case=linear_case(op.removeprefix("linear_"), B * N, outer, dtype),
    )


def eight_bits(op: str, B: int, N: int, C: int, dtype: torch.dtype) -> Workload:
    """`linear_int8` or `linear_fp8`, C to 4C, with a scale a token and an output channel, to `dtype`."""
    kind = torch.int8 if op == "linear_int8" else torch.float8_e4m3fn

    def draw(normal: Normal) -> tuple[Any, ...]:
        (x, x_scale), (weight, weight_scale) = (
            reference.quantize(tensor, kind) for tensor in (normal(B, N, C), normal(4 * C, C, scale=C**-0.5))
        )
        return x, weight, x_scale, weight_scale, normal(4 * C)

    return Workload(
        op=op,
        batch=B,
        shape=f"{B} x {N}, {C} to {4 * C}",
        dtype=dtype,
        draw=draw,
        flops=8 * B * N * C * C,
        traffic_bytes=B * N * C + 4 * C * C + 4 * B * N * C * dtype.itemsize,
        key=op,
        case=gemm.size_of(B * N, 4 * C),
        named={"dtype": dtype},
        plain_op=reference.quantized_linear,
    )


def quantize(B: int, N: int, C: int, dtype: torch.dtype) -> Workload:
    return Workload(
        op="quantize",
        batch=B,
        shape=f"{B} x {N} x {C}",
        dtype=dtype,
        draw=lambda normal: (normal(B, N, C),),
        flops=2 * B * N * C,
        traffic_bytes=B * N * C * (dtype.itemsize + 1) + 4 * B * N,
        key="quantize",
        case=str(triton.next_power_of_2(C)),
        plain_op=reference.quantize,
    )


def mask_scores(B: int, n: int, C: int, dtype: torch.dtype) -> Workload:
    return Workload(
        op="mask_scores",
        batch=B,
        shape=f"{B} x {n} x {C}, {CLASSES} classes",
        dtype=dtype,
        draw=lambda normal: (normal(B, n, C), normal(B, CLASSES, C), normal(CLASSES), normal(CLASSES), 1e-5),
        flops=2 * B * n * CLASSES * C,
        traffic_bytes=B * (n * C + CLASSES * C + n * CLASSES) * dtype.itemsize,
        key="mask_scores",
        case=mask_scores_case(CLASSES, dtype),
    )


def _of_width(op: str, B: int, side: int, C: int, dtype: torch.dtype) -> Iterator[Workload]:
    n = (side // PATCH) ** 2
    if op == "patch_embed":
        yield from (patch_embed(B, side, C, dtype, pixels) for pixels in (True, False))
    elif op in ("add_layernorm", "layernorm", "layernorm_quantize"):
        yield norm(op, B, 1 + n, C, dtype)
    elif op in ("linear_gelu", "linear_residual"):
        yield linear(op, B, 1 + n, C, dtype)
    elif op in ("linear_int8", "linear_fp8"):
        yield eight_bits(op, B, 1 + n, C, dtype)
    elif op == "quantize":
        yield quantize(B, 1 + n, C, dtype)
    elif op == "mask_scores":
        yield mask_scores(B, n, C, dtype)
    elif op == "rotate":
        yield rotate(B, 1 + n, C // 64, 64, dtype)
    elif op == "resize":
        yield resize(B, side)
    elif op == "normalize":
        yield normalize(B, side)
    else:
        yield upsample_argmax(B, side, dtype)


ONE_TILE = ("rotate", "resize", "normalize")  # for all GPUs
OPS = (
    *("attention", "patch_embed", "add_layernorm", "linear_gelu", "linear_residual", "mask_scores", "upsample_argmax"),
    *("merge_windows", "layernorm", "layernorm_quantize", "quantize", "linear_int8", "linear_fp8"),
    *ONE_TILE,
)


def of_op(op: str, dtype: torch.dtype, batches: Iterable[int], widths: Iterable[str] = tuple(WIDTHS)) -> list[Workload]:
    """The workloads of an op, at 512 x 512 (Seg-L: 640 x 640), patch 16 and 150 classes, of networks of some `WIDTHS`.

    Attention is timed at every number of tokens that Segmenter has, with the heads of Seg-B.
    """
    found: list[Workload] = []
    for B in batches:
        if op == "merge_windows":  # the paper's windows of ADE20K and of Cityscapes, of one picture
            found += [merge_windows((512, 683), 512, 512, dtype), merge_windows((1024, 2048), 768, 512, dtype)]
        elif op == "attention":
            found += [attention(B, N, 12, 64, dtype) for N in TOKENS]
        else:
            for name in widths:
                found += _of_width(op, B, 640 if name == "L" else 512, WIDTHS[name], dtype)
    return list({workload.shape: workload for workload in found}.values())


def runs_on(op: str, architecture: int) -> bool:
    """Whether GPUs of an architecture have what an op needs."""
    return op != "linear_fp8" or architecture >= FLOAT8_ARCHITECTURE
