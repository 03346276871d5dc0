"""Class masks on the patch grid to labels on pixels: bilinear (align_corners=False), then the first largest class.

    y' = max((y + 1/2) h / H - 1/2, 0),  j = floor(y'),  l = y' - j;  x', i, m likewise from x, w, W
    top = masks[k, j, i] + m (masks[k, j, i + 1] - masks[k, j, i]),  bottom likewise at j + 1
    logit[k] = top + l (bottom - top),  label = the first k of the largest logit

The logits stay in registers. All output rows of a program lie between the same two source rows, so that a class costs
its horizontal interpolation once a column and then one multiply-add a pixel. The warps of a program share its pixels
and part the classes among them, so that one picture keeps every scheduler of a large GPU busy with few registers a
thread. Classes are compared in groups, by the largest of each, for comparing and selecting run at half the rate of
arithmetic; the winning group is then looked through again for the first class of that largest logit, computed anew to
the same bits. Source positions are computed in integers, so that weights carry one float32 rounding. Masks should be
finite: NaN does not win here, as it does in PyTorch.
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
    """Logits of a class, the same bits anywhere: pointers and `fraction` of a column or a pixel, `weight` of a row."""
    left, right = tl.load(left_ptr).to(tl.float32), tl.load(right_ptr).to(tl.float32)
    top = tl.fma(fraction, right - left, left)
    left, right = tl.load(left_ptr + down).to(tl.float32), tl.load(right_ptr + down).to(tl.float32)
    bottom = tl.fma(fraction, right - left, left)
    return tl.fma(weight, bottom - top, top)


@triton.jit
def _whole(a, b):
    """a // b of numbers that are not negative: unsigned, it is shorter and needs no register of a thread's own."""
    # a side of 1 is a constant to the compiler, which has no .to()
    return (a.to(tl.uint32) // tl.cast(b, tl.uint32)).to(tl.int32)


@triton.jit
def _columns(masks_ptr, x, w, W, stride_w):
    """Pointers to the source elements left and right of columns `x`, and the fraction between them."""
    across = tl.maximum((2 * x + 1) * w - W, 0)
    i = _whole(across, 2 * W)
    fraction = (across - 2 * i * W).to(tl.float32) / tl.cast(2 * W, tl.float32)
    return masks_ptr + i.to(tl.int64) * stride_w, masks_ptr + tl.minimum(i + 1, w - 1).to(tl.int64) * stride_w, fraction


@triton.jit
def _pairs(values, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, PAIRS: tl.constexpr):
    """The first and the second of each pair of parts. A reduction would pass shared memory several times."""
    first, second = tl.split(tl.permute(tl.reshape(values, [BLOCK_Y, PAIRS, 2, BLOCK_X]), [0, 1, 3, 2]))
    return tl.reshape(first, [BLOCK_Y, PAIRS * BLOCK_X]), tl.reshape(second, [BLOCK_Y, PAIRS * BLOCK_X])


@triton.jit
def _kernel(
    masks_ptr, labels_ptr, confidence_ptr, K, h, w, H, W, rows, columns, intervals, chunks,
    stride_b, stride_k, stride_h, stride_w,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK_X)
    program = tl.program_id(0)
    rest = _whole(program, blocks)
    block = program - rest * blocks
    program, rest = rest, _whole(rest, chunks)
    chunk = program - rest * chunks
    b = _whole(rest, intervals)
    # interval j lies between the centres of source rows j and j + 1; number -1 above the first centre
    j = rest - b * intervals - 1
    first = _whole(tl.maximum((2 * j + 1) * H + h - 1, 0), 2 * h) + chunk * BLOCK_Y
    last = tl.minimum(_whole((2 * j + 3) * H + h - 1, 2 * h), rows)
    if first < last:
        j = tl.maximum(j, 0)
        y = (first + tl.arange(0, BLOCK_Y))[:, None]
        weight = tl.maximum((2 * y + 1) * h - H - 2 * j * H, 0).to(tl.float32) / tl.cast(2 * H, tl.float32)
        masks_ptr += b.to(tl.int64) * stride_b + j.to(tl.int64) * stride_h
        down = (tl.minimum(j + 1, h - 1) - j) * stride_h

        # a lane is a column with one of SPLIT parts of the classes, its warp's
        lane = tl.arange(0, SPLIT * BLOCK_X)[None, :]
        x = tl.minimum(block * BLOCK_X + lane % BLOCK_X, columns - 1)
        left_ptr, right_ptr, fraction = _columns(masks_ptr, x, w, W, stride_w)
        part = tl.cdiv(K, SPLIT)
        begin = lane // BLOCK_X * part
        best = tl.full([BLOCK_Y, SPLIT * BLOCK_X], float("-inf"), tl.float32)
        group = tl.zeros([BLOCK_Y, SPLIT * BLOCK_X], tl.int32)
        # by twos: a group is loaded while the one before it is compared
        for k in tl.range(0, part, GROUP, loop_unroll_factor=2):
            # the last groups start early rather than end past K: what they repeat is no longer better
            start = tl.minimum(begin + k, K - GROUP)
            at = start.to(tl.int64) * stride_k
            most = _logit(left_ptr + at, right_ptr + at, down, fraction, weight)
            for member in tl.static_range(1, GROUP):
                to = at + member * stride_k
                most = tl.maximum(most, _logit(left_ptr + to, right_ptr + to, down, fraction, weight))
            group = tl.where(most > best, start, group)
            best = tl.maximum(most, best)

        # the first of a pair, being of earlier classes, wins where both are equal
        for halving in tl.static_range(1, 4):
            if SPLIT >> halving:
                best, other = _pairs(best, BLOCK_Y, BLOCK_X, SPLIT >> halving)
                group, later = _pairs(group, BLOCK_Y, BLOCK_X, SPLIT >> halving)
                group = tl.where(other > best, later, group)
                best = tl.maximum(best, other)

        # pixels are spread over all warps from here on
        x = (block * BLOCK_X + tl.arange(0, BLOCK_X))[None, :]
        west_ptr, east_ptr, between = _columns(masks_ptr, tl.minimum(x, columns - 1), w, W, stride_w)
        west_ptr += group.to(tl.int64) * stride_k
        east_ptr += group.to(tl.int64) * stride_k
        label = group
        for member in tl.static_range(GROUP - 1, -1, -1):
            to = member * stride_k
            label = tl.where(_logit(west_ptr + to, east_ptr + to, down, between, weight) == best, group + member, label)

        keep = (y < last) & (x < columns)
        pixel = (b.to(tl.int64) * rows + y) * columns + x  # [BLOCK_Y, BLOCK_X]
        tl.store(labels_ptr + pixel, label.to(labels_ptr.dtype.element_ty), keep)
        if confidence_ptr is not None:
            best = tl.broadcast_to(best[:, None, :], [BLOCK_Y, SPLIT, BLOCK_X])
            best = tl.reshape(best, [BLOCK_Y, SPLIT * BLOCK_X])
            total = tl.zeros([BLOCK_Y, SPLIT * BLOCK_X], tl.float32)
            for k in range(part):
                at = tl.minimum(begin + k, K - 1).to(tl.int64) * stride_k
                exponential = tl.exp(_logit(left_ptr + at, right_ptr + at, down, fraction, weight) - best)
                total += tl.where(begin + k < K, exponential, 0.0)
            total = tl.sum(tl.reshape(total, [BLOCK_Y, SPLIT, BLOCK_X]), 1)
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
        tile: BLOCK_Y rows by BLOCK_X columns a program, GROUP classes compared at once, SPLIT (1, 2, 4 or 8) parts of
            the classes, each of BLOCK_X / 32 warps, num_warps; None takes the committed one.

    Returns:
        Labels [B, H', W'] uint8, int16 when K > 256; with `confidence` a pair of these and float32 [B, H', W'].

    Raises:
        ValueError: shapes, dtype or device differ from the above, or a gradient is needed.
    """
    checks.tensor(OP, masks=masks)
    checks.require(masks.dim() == 4, OP, f"masks {list(masks.shape)}: want [B, K, h, w]")
    B, K, h, w = masks.shape
    H, W = checks.sides(OP, "size", size)
    rows, columns = checks.sides(OP, "crop", crop or size)
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
    tile = tiles.chosen(OP, tile, tiles.of_device(OP, case_of(between), masks.device))
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
            SPLIT=tile["SPLIT"],
            num_warps=tile["num_warps"],
        )
    return labels if probability is None else (labels, probability)


def case_of(rows: int) -> str:
    """The name in the tile data of masks with this many output rows between two source rows."""
    return str(min(triton.next_power_of_2(rows), MAX_ROWS))


def candidates(architecture: int, case: str) -> Iterator[Tile]:
    """Tiles worth timing."""
    for BLOCK_Y in sorted({int(case), max(int(case) // 2, 1)}):
        for SPLIT, BLOCK_X in ((2, 32), (2, 64), (4, 32), (4, 64)):
            for GROUP in (4, 8):
                num_warps = SPLIT * BLOCK_X // 32
                yield {"BLOCK_Y": BLOCK_Y, "BLOCK_X": BLOCK_X, "GROUP": GROUP, "SPLIT": SPLIT, "num_warps": num_warps}


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
                    **{"GROUP": 1 if few else tile["GROUP"], "SPLIT": tile["SPLIT"]},
                },
                aligned=frozenset(("masks_ptr", "labels_ptr", *(("confidence_ptr",) if confidence else ()))),
                num_warps=tile["num_warps"],
                num_stages=1,
            )
