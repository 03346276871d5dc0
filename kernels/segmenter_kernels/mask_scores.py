"""Scores of every patch for every class: rows of length 1, their product, LayerNorm over the classes, in one pass.

    s[n, k] = (p[n] . c[k]) / (|p[n]| |c[k]|),  y[n] = (s[n] - mean) / sqrt(var + eps) * weight + bias

The product and both kinds of squared lengths come from the same tiles; rows and columns are scaled afterwards, so that
nothing is rounded between. Lengths, sums and statistics are float32, whatever the rows hold. K classes are padded to
one or two powers of two (150 to 128 + 32), and the padding has no part in the statistics.

On Hopper each step waits for its products (WAITS), by a selection that changes nothing. There groups of warps multiply
asynchronously (wgmma), and Triton 3.6 and 3.8 otherwise let a copy for a later step overwrite rows that a running
product still reads, because threads read them here too: `segmenter_kernels.compiling.overwritten`.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import checks, tiles
from segmenter_kernels.rounded import inverse_root, mean
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "mask_scores"
MAX_B = 65535  # programs along the second axis of a grid
MAX_K = 1024
SMALLEST = 16  # side of a matrix product
DEPLOYED_CLASSES = (19, 60, 150)  # Cityscapes, Pascal Context, ADE20K


@triton.jit
def _squares(x):
    """Squares of a block of rows, summed by eights of channels: what one thread loads, so that none is exchanged."""
    wide = x.to(tl.float32)
    return tl.sum(tl.reshape(wide * wide, [x.shape[0], x.shape[1] // 8, 8]), 2)


@triton.jit
def _product(
    patch, class_ptr, column_keep, total, squares, one,
    EVEN: tl.constexpr, WAITS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One block of channels: the product with some classes added to `total`, their squares to `squares`.

    A float32 block is summed apart, as one sum over all channels would lose twice as much. `one`, which must be known
    only at run time, keeps the compiler from joining the sums, and from seeing that the selection changes nothing.
    """
    each = tl.load(class_ptr) if EVEN else tl.load(class_ptr, column_keep, 0.0)
    if EXACT:
        total += tl.dot(patch, each.T, input_precision="ieee") * one
    else:
        total = tl.dot(patch, each.T, total)
        if WAITS:
            total = tl.where(one > 0.0, total, 0.0)
    return total, squares + _squares(each)


@triton.jit
def _finish(total, patch_squares, squares, k, K, EXACT: tl.constexpr):
    """Products to scores, 0 for the padding."""
    rows, columns = inverse_root(tl.sum(patch_squares, 1), EXACT)[:, None], tl.sum(squares, 1)[None, :]
    # what a row has in common drops out of its LayerNorm; a class's length does not, and is divided by, rounded once
    scores = tl.div_rn(total, tl.sqrt_rn(columns)) * rows if EXACT else total * rows * inverse_root(columns, False)
    return tl.where((k < K)[None, :], scores, 0.0)


@triton.jit
def _store(scores, inverse, weight_ptr, bias_ptr, out_ptr, n, k, rows, K):
    weight = tl.load(weight_ptr + k, k < K, 0.0).to(tl.float32)
    bias = tl.load(bias_ptr + k, k < K, 0.0).to(tl.float32)
    y = scores * inverse[:, None] * weight[None, :] + bias[None, :]
    keep = (n < rows)[:, None] & (k < K)[None, :]
    tl.store(out_ptr + n[:, None] * K + k[None, :], y.to(out_ptr.dtype.element_ty), keep)


@triton.jit(do_not_specialize=["N"])  # a constant N would undo `one`
def _kernel(
    patches_ptr, classes_ptr, weight_ptr, bias_ptr, out_ptr, N, K, C, eps,
    stride_pb, stride_pn, stride_cb, stride_ck,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, REST_K: tl.constexpr, BLOCK_C: tl.constexpr,
    EVEN: tl.constexpr, WAITS: tl.constexpr,
):  # fmt: skip
    EXACT: tl.constexpr = out_ptr.dtype.element_ty == tl.float32
    one = tl.where(N > 0, 1.0, 0.0)
    b = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    col = tl.arange(0, BLOCK_C)
    # rows past the end repeat the last: they need no mask, and what comes of them is dropped
    row = tl.minimum(first + n, N - 1).to(tl.int64)
    patch_ptr = patches_ptr + b * stride_pb + row[:, None] * stride_pn + col[None, :]
    classes_ptr += b * stride_cb
    class_ptr = classes_ptr + tl.minimum(k, K - 1).to(tl.int64)[:, None] * stride_ck + col[None, :]
    patch_squares = tl.zeros([BLOCK_N, BLOCK_C // 8], tl.float32)
    squares = tl.zeros([BLOCK_K, BLOCK_C // 8], tl.float32)
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    if REST_K:
        rest = BLOCK_K + tl.arange(0, REST_K)
        rest_ptr = classes_ptr + tl.minimum(rest, K - 1).to(tl.int64)[:, None] * stride_ck + col[None, :]
        rest_squares = tl.zeros([REST_K, BLOCK_C // 8], tl.float32)
        rest_total = tl.zeros([BLOCK_N, REST_K], tl.float32)
    # without this, Triton 3.6 minds a loop that never runs, and wgmma is serialised
    tl.assume(C > 0)
    for c in range(0, C, BLOCK_C):
        keep = (c + col < C)[None, :]
        patch = tl.load(patch_ptr + c) if EVEN else tl.load(patch_ptr + c, keep, 0.0)
        patch_squares += _squares(patch)
        total, squares = _product(patch, class_ptr + c, keep, total, squares, one, EVEN, WAITS, EXACT)
        if REST_K:
            rest_total, rest_squares = _product(
                patch, rest_ptr + c, keep, rest_total, rest_squares, one, EVEN, WAITS, EXACT
            )

    scores = _finish(total, patch_squares, squares, k, K, EXACT)
    center = tl.sum(scores, 1)
    if REST_K:
        rest_scores = _finish(rest_total, patch_squares, rest_squares, rest, K, EXACT)
        center += tl.sum(rest_scores, 1)
    center = mean(center, K, EXACT)
    # a padded column would add the squared mean to the variance
    scores = tl.where((k < K)[None, :], scores - center[:, None], 0.0)
    squared = tl.sum(scores * scores, 1)
    if REST_K:
        rest_scores = tl.where((rest < K)[None, :], rest_scores - center[:, None], 0.0)
        squared += tl.sum(rest_scores * rest_scores, 1)
    inverse = inverse_root(mean(squared, K, EXACT) + eps, EXACT)
    # N K may pass 2^31, what a program writes does not: offsets in it in 64 bits would take registers
    out_ptr += (b * N + first) * K
    _store(scores, inverse, weight_ptr, bias_ptr, out_ptr, n, k, N - first, K)
    if REST_K:
        _store(rest_scores, inverse, weight_ptr, bias_ptr, out_ptr, n, rest, N - first, K)


def mask_scores(
    patches: Tensor, classes: Tensor, weight: Tensor, bias: Tensor, eps: float, *, tile: Tile | None = None
) -> Tensor:
    """Scores of every patch for every class; inference only.

    Args:
        patches: [B, N, C], fp16, bf16 or fp32, B <= MAX_B; any strides but a contiguous last axis, as slices of
            [B, N + K, C] have.
        classes: [B, K, C] likewise, 0 < K <= MAX_K.
        weight, bias: [K], contiguous.
        eps: added to the variance over the classes, a float, 0 or above.
        tile: BLOCK_N patches by BLOCK_C channels a step, num_warps, num_stages; None takes the committed one.

    Returns:
        [B, N, K], contiguous. A row (or class) of zeros has no direction and gives NaN, as in PyTorch.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, eps is below 0 or not finite, or a
            gradient is needed.
    """
    checks.tensor(OP, patches=patches)
    checks.require(patches.dim() == 3, OP, f"patches {list(patches.shape)}: want [B, N, C]")
    B, N, C = patches.shape
    checks.require(B <= MAX_B, OP, f"patches {list(patches.shape)}: want at most {MAX_B} images; give them in parts")
    checks.shape(OP, "classes", classes, (B, -1, C))
    K = classes.shape[1]
    checks.require(0 < K <= MAX_K, OP, f"classes {list(classes.shape)}: want 1 to {MAX_K} classes along axis 1")
    checks.require(C > 0, OP, f"patches {list(patches.shape)}: want at least 1 channel")
    checks.shape(OP, "weight", weight, (K,))
    checks.shape(OP, "bias", bias, (K,))
    dtype = checks.same_dtype(OP, checks.FLOATS, patches=patches, classes=classes, weight=weight, bias=bias)
    checks.on_gpu(OP, patches=patches, classes=classes, weight=weight, bias=bias)
    checks.contiguous(OP, weight=weight, bias=bias)
    for name, x in (("patches", patches), ("classes", classes)):
        fits = x.stride(2) == 1 or C == 1
        checks.require(fits, OP, f"{name} has strides {list(x.stride())}; want its last axis contiguous")
    checks.epsilon(OP, eps)
    checks.inference_only(OP, patches=patches, classes=classes, weight=weight, bias=bias)
    BLOCK_K, REST_K = split(K)
    tile = tiles.chosen(OP, tile, tiles.of_device(OP, case_of(K, dtype), patches.device))
    out = torch.empty(B, N, K, dtype=dtype, device=patches.device)
    if out.numel():
        _kernel[(triton.cdiv(N, tile["BLOCK_N"]), B)](
            *(patches, classes, weight, bias, out, N, K, C, eps, *patches.stride()[:2], *classes.stride()[:2]),
            BLOCK_N=tile["BLOCK_N"],
            BLOCK_K=BLOCK_K,
            REST_K=REST_K,
            BLOCK_C=tile["BLOCK_C"],
            EVEN=C % tile["BLOCK_C"] == 0,
            WAITS=tiles.architecture_of(patches.device) == tiles.HOPPER,
            num_warps=tile["num_warps"],
            num_stages=tile["num_stages"],
        )
    return out


def split(K: int) -> tuple[int, int]:
    """K as one or two powers of two, each at least SMALLEST, of the least sum: 150 is (128, 32), 59 is (64, 0)."""
    whole = max(triton.next_power_of_2(K), SMALLEST)
    half = whole // 2
    rest = max(triton.next_power_of_2(K - half), SMALLEST)
    return (half, rest) if half >= SMALLEST and half + rest < whole else (whole, 0)


def case_of(K: int, dtype: torch.dtype) -> str:
    """The name in the tile data: padded classes, and the size of an element when it is not 2 bytes."""
    return f"{triton.next_power_of_2(sum(split(K)))}{'_fp32' if dtype == torch.float32 else ''}"


def candidates(architecture: int, case: str) -> Iterator[Tile]:
    """Tiles worth timing: those that fit the architecture's shared memory."""
    columns, itemsize = int(case.split("_")[0]), 4 if case.endswith("fp32") else 2
    for BLOCK_N in (16, 32, 64, 128):
        for BLOCK_C in (32, 64, 128):
            for num_warps in (4, 8):
                for num_stages in (3, 4):
                    sizes = {"BLOCK_N": BLOCK_N, "BLOCK_C": BLOCK_C, "num_warps": num_warps, "num_stages": num_stages}
                    shared_bytes = (BLOCK_N + columns) * BLOCK_C * itemsize * num_stages
                    # products of a thread, float32, in half of its registers
                    fits = BLOCK_N * columns <= 128 * 32 * num_warps
                    if fits and shared_bytes <= tiles.SHARED_MEMORY_BYTES[architecture]:
                        yield sizes


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture: widths that are multiples of the tile's."""
    pointers = ("patches_ptr", "classes_ptr", "weight_ptr", "bias_ptr", "out_ptr")
    strides = ("stride_pb", "stride_pn", "stride_cb", "stride_ck")
    for dtype in DEPLOYED:
        for K in DEPLOYED_CLASSES:
            BLOCK_K, REST_K = split(K)
            tile = tiles.of_architecture(OP, case_of(K, dtype), architecture)
            yield Specialisation(
                name=f"{OP}_{TYPE_NAMES[dtype]}_k{BLOCK_K + REST_K}",
                kernel=_kernel,
                types={
                    **dict.fromkeys(pointers, f"*{TYPE_NAMES[dtype]}"),
                    **{"N": "i32", "K": "i32", "C": "i32", "eps": "fp32"},
                    **dict.fromkeys(strides, "i32"),
                },
                constants={
                    **{"BLOCK_N": tile["BLOCK_N"], "BLOCK_K": BLOCK_K, "REST_K": REST_K, "BLOCK_C": tile["BLOCK_C"]},
                    **{"EVEN": True, "WAITS": architecture == tiles.HOPPER},
                },
                aligned=frozenset((*pointers, "C", *strides)),
                num_warps=tile["num_warps"],
                num_stages=tile["num_stages"],
                matrix=True,
                asynchronous=True,
            )
