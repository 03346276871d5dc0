"""Class masks on the patch grid to labels on pixels: bilinear (align_corners=False), then the first largest class.

    y' = max((y + 1/2) h / H - 1/2, 0),  j = floor(y'),  l = y' - j;  x', i, m likewise from x, w, W
    top = masks[k, j, i] + m (masks[k, j, i + 1] - masks[k, j, i]),  bottom likewise at j + 1
    logit[k] = top + l (bottom - top),  label = the first k of the largest logit

The logits stay in registers. All output rows of a program lie between the same two source rows, so that a class costs
its horizontal interpolation once a column and then one multiply-add a pixel. Classes are compared in groups, by the
largest of each, for comparing and selecting run at half the rate of arithmetic; the winning group is then looked
through again for its first largest class. Source positions are computed in integers, so that weights carry one float32
rounding. Masks should be finite: NaN does not win here, as it does in PyTorch.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import checks, tiles
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "upsample_argmax"
MAX_K = 32767
MAX_SIDES = 2**29  # source side times target side, so that positions fit int32
MAX_ROWS = 16  # output rows between two source rows that have a case of their own
# case, with confidence or not, type of the labels, whether for fewer classes than a group; 32 bits are for TensorRT,
# whose plugins write no narrower labels (its UINT8 is of inputs and outputs alone)
DEPLOYED_CASES = (
    *(("8", False, "u8", False), ("16", False, "u8", False), ("16", False, "i16", False), ("16", True, "u8", False)),
    *(("8", False, "i32", False), ("16", False, "i32", False), ("16", False, "i32", True)),
)


@triton.jit
def _logit(left_ptr, right_ptr, down, fraction, weight):
    """Logits of a class: pointers and `fraction` [1, BLOCK_X] (or one a pixel), `weight` [BLOCK_Y, 1]."""
    left, right = tl.load(left_ptr).to(tl.float32), tl.load(right_ptr).to(tl.float32)
    top = left + fraction * (right - left)
    left, right = tl.load(left_ptr + down).to(tl.float32), tl.load(right_ptr + down).to(tl.float32)
    bottom = left + fraction * (right - left)
    return top + weight * (bottom - top)


@triton.jit
def _kernel(
    masks_ptr, labels_ptr, confidence_ptr, K, h, w, H, W, rows, columns, intervals, chunks,
    stride_b, stride_k, stride_h, stride_w,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK_X)
    program = tl.program_id(0)
    block, program = program % blocks, program // blocks
    chunk, program = program % chunks, program // chunks
    # interval j lies between the centres of source rows j and j + 1; number -1 above the first centre
    j, b = program % intervals - 1, program // intervals
    first = tl.maximum(((2 * j + 1) * H + h - 1) // (2 * h), 0) + chunk * BLOCK_Y
    last = tl.minimum(((2 * j + 3) * H + h - 1) // (2 * h), rows)
    if first < last:
        j = tl.maximum(j, 0)
        y = (first + tl.arange(0, BLOCK_Y))[:, None]
        # a side of 1 is a constant to the compiler, which has no .to()
        weight = tl.maximum((2 * y + 1) * h - H - 2 * j * H, 0).to(tl.float32) / tl.cast(2 * H, tl.float32)
        x = (block * BLOCK_X + tl.arange(0, BLOCK_X))[None, :]
        across = tl.maximum((2 * tl.minimum(x, columns - 1) + 1) * w - W, 0)
        i = across // (2 * W)
        fraction = (across - 2 * i * W).to(tl.float32) / tl.cast(2 * W, tl.float32)
        masks_ptr += b.to(tl.int64) * stride_b + j.to(tl.int64) * stride_h
        left_ptr = masks_ptr + i.to(tl.int64) * stride_w
        right_ptr = masks_ptr + tl.minimum(i + 1, w - 1).to(tl.int64) * stride_w
        down = (tl.minimum(j + 1, h - 1) - j) * stride_h

        best = tl.full([BLOCK_Y, BLOCK_X], float("-inf"), tl.float32)
        group = tl.zeros([BLOCK_Y, BLOCK_X], tl.int32)
        for k in range(0, K, GROUP):
            # the last group starts early rather than end past K: what it repeats is no longer better
            start = tl.minimum(k, K - GROUP)
            at = tl.cast(start, tl.int64) * stride_k
            most = _logit(left_ptr + at, right_ptr + at, down, fraction, weight)
            for member in tl.static_range(1, GROUP):
                to = at + member * stride_k
                most = tl.maximum(most, _logit(left_ptr + to, right_ptr + to, down, fraction, weight))
            better = most > best
            best = tl.where(better, most, best)
            group = tl.where(better, start, group)

        label = group
        most = tl.full([BLOCK_Y, BLOCK_X], float("-inf"), tl.float32)
        for member in range(GROUP):
            each = (group + member).to(tl.int64) * stride_k
            logit = _logit(left_ptr + each, right_ptr + each, down, fraction, weight)
            label = tl.where(logit > most, group + member, label)
            most = tl.maximum(most, logit)

        keep = (y < last) & (x < columns)
        pixel = (b.to(tl.int64) * rows + y) * columns + x  # [BLOCK_Y, BLOCK_X]
        tl.store(labels_ptr + pixel, label.to(labels_ptr.dtype.element_ty), keep)
        if confidence_ptr is not None:
            total = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
            for k in range(K):
                at = tl.cast(k, tl.int64) * stride_k
                total += tl.exp(_logit(left_ptr + at, right_ptr + at, down, fraction, weight) - best)
            tl.store(confidence_ptr + pixel, 1.0 / total, keep)


def upsample_argmax(
    masks: Tensor,
    size: tuple[int, int],
    crop: tuple[int, int] | None = None,
    *,
    confidence: bool = False,
    tile: Tile | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Class masks on the patch grid to labels on pixels, without holding logits.

    Args:
        masks: [B, K, h, w] of any strides, fp16, bf16 or fp32, finite; 0 < K <= MAX_K.
        size: (H, W) to upsample (or downsample) to.
        crop: (H', W') of the top-left part to keep; None keeps all.
        confidence: also give the softmax probability of each pixel's label.
        tile: BLOCK_Y rows by BLOCK_X columns a program, GROUP classes compared at once, num_warps; None takes
            the committed one.

    Returns:
        Labels [B, H', W'] uint8, int16 when K > 256; with `confidence` a pair of these and float32 [B, H', W'].

    Raises:
        ValueError: shapes, dtype or device differ from the above, or a gradient is needed.
    """
    checks.require(masks.dim() == 4, OP, f"masks {list(masks.shape)}: want [B, K, h, w]")
    B, K, h, w = masks.shape
    (H, W), (rows, columns) = size, crop or size
    checks.require(0 < K <= MAX_K, OP, f"masks {list(masks.shape)}: want 1 to {MAX_K} classes along axis 1")
    checks.require(min(h, w, H, W) > 0, OP, f"masks {h}x{w} to {H}x{W}: want sides of at least 1")
    checks.require(max(h * H, w * W) < MAX_SIDES, OP, f"masks {h}x{w} to {H}x{W}: too large; do it in parts")
    checks.require(0 < rows <= H and 0 < columns <= W, OP, f"crop {rows}x{columns}: want a part of {H}x{W}")
    checks.same_dtype(OP, checks.FLOATS, masks=masks)
    checks.on_gpu(OP, masks=masks)
    checks.inference_only(OP, masks=masks)
    labels = torch.empty(B, rows, columns, dtype=torch.uint8 if K <= 256 else torch.int16, device=masks.device)
    probability = torch.empty(labels.shape, dtype=torch.float32, device=masks.device) if confidence else None
    between = -(-H // h)
    tile = tile or tiles.of_device(OP, case_of(between), masks.device)
    # those up to the one that holds the last row kept
    intervals = max(((2 * rows - 1) * h - H) // (2 * H), -1) + 2
    chunks = triton.cdiv(between, tile["BLOCK_Y"])
    grid = (triton.cdiv(columns, tile["BLOCK_X"]) * chunks * intervals * B,)
    if B:
        _kernel[grid](
            *(masks, labels, probability, K, h, w, H, W, rows, columns, intervals, chunks, *masks.stride()),
            BLOCK_Y=tile["BLOCK_Y"],
            BLOCK_X=tile["BLOCK_X"],
            GROUP=min(tile["GROUP"], 2 ** (K.bit_length() - 1)),
            num_warps=tile["num_warps"],
        )
    return labels if probability is None else (labels, probability)


def case_of(rows: int) -> str:
    """The name in the tile data of masks with this many output rows between two source rows."""
    return str(min(triton.next_power_of_2(rows), MAX_ROWS))


def candidates(architecture: int, case: str) -> Iterator[Tile]:
    """Tiles worth timing."""
    for BLOCK_Y in sorted({int(case), max(int(case) // 2, 1)}):
        for num_warps in (1, 2, 4):
            for GROUP in (1, 2, 4, 8):
                yield {"BLOCK_Y": BLOCK_Y, "BLOCK_X": 32 * num_warps, "GROUP": GROUP, "num_warps": num_warps}


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture: channels-last masks (stride 1 along the classes)."""
    integers = ("K", "h", "w", "H", "W", "rows", "columns", "intervals", "chunks", "stride_b", "stride_h", "stride_w")
    for dtype in DEPLOYED:
        for case, confidence, labels, few in DEPLOYED_CASES:
            tile = tiles.of_architecture(OP, case, architecture)
            suffix = {"u8": "", "i16": "_int16", "i32": "_int32"}[labels]
            suffix += ("_confidence" if confidence else "") + ("_few" if few else "")
            yield Specialisation(
                name=f"{OP}_{TYPE_NAMES[dtype]}_r{case}{suffix}",
                kernel=_kernel,
                types={
                    **{"masks_ptr": f"*{TYPE_NAMES[dtype]}", "labels_ptr": f"*{labels}"},
                    **({"confidence_ptr": "*fp32"} if confidence else {}),
                    **dict.fromkeys(integers, "i32"),
                },
                constants={
                    **({} if confidence else {"confidence_ptr": None}),
                    **{"stride_k": 1, "BLOCK_Y": tile["BLOCK_Y"], "BLOCK_X": tile["BLOCK_X"]},
                    **{"GROUP": 1 if few else tile["GROUP"]},
                },
                aligned=frozenset(("masks_ptr", "labels_ptr", *(("confidence_ptr",) if confidence else ()))),
                num_warps=tile["num_warps"],
                num_stages=1,
            )
