"""Class masks of a picture's sliding windows to labels of the whole picture: the first class of the largest mean logit.

    window r, c of height x width pixels begins at  y_r = min(r stride, H - window),  x_c = min(c stride, W - window)
    logit[k] at y, x = mean over the windows on it of masks[r, c][k], upsampled to `side` (as `upsample_argmax` writes
    it) and read at y - y_r, x - x_c;  label = the first k of the largest

All windows on a pixel count alike, so that the largest sum is that of the largest mean and nothing is divided. Masks
stay as the network leaves them and no logits are held: a picture of 150 classes would take 600 bytes a pixel. Rows are
interpolated before columns, and windows added from the first to the last, as `segmenter_trt` does on a CPU. Masks
should be finite, which `odd` tells: NaN does not win here, as it does in PyTorch.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import checks, tiles
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile
from segmenter_kernels.upsample_argmax import MAX_K, MAX_SIDES

OP = "merge_windows"
CASES = (16, 32)  # classes compared at once
# of masks in planes, for all GPUs: a thread a pixel, whose neighbours read the same patch, and its classes in registers
PLANAR: Tile = {"BLOCK_X": 128, "BLOCK_K": 8, "num_warps": 4}
LARGEST = 1e37  # of sums; those of finite masks beyond it are told too, for differences of masks must not overflow


@triton.jit
def _first_window(at, stride, window, count):
    """The first window that reaches a pixel, of `count` along a side."""
    return tl.minimum(tl.maximum((at - window + stride) // stride, 0), count - 1)


@triton.jit
def _last_window(at, stride, last_start, count):
    """The last window that begins no later than a pixel; the last of all begins off the stride."""
    return tl.where(at >= last_start, count - 1, tl.minimum(at // stride, count - 2))


@triton.jit
def _source(at, length, side):
    """Source element below a pixel of `side`, the one after it, and the fraction between them."""
    across = tl.maximum((2 * at + 1) * length - side, 0)
    low = across // (2 * side)
    # a side of 1 is a constant to the compiler, which has no .to()
    fraction = (across - 2 * low * side).to(tl.float32) / tl.cast(2 * side, tl.float32)
    return low.to(tl.int64), tl.minimum(low + 1, length - 1).to(tl.int64), fraction


@triton.jit
def _kernel(
    masks_ptr, labels_ptr, odd_ptr, K, h, w, side_y, side_x, H, W, window, stride, rows, columns,
    stride_n, stride_k, stride_h, stride_w,
    LARGEST: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(W, BLOCK_X)
    y, begin = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK_X
    x = begin + tl.arange(0, BLOCK_X)
    first_row = _first_window(y, stride, window, rows)
    last_row = _last_window(y, stride, H - window, rows)
    first_column = _first_window(begin, stride, window, columns)
    last_column = _last_window(tl.minimum(begin + BLOCK_X, W) - 1, stride, W - window, columns)

    best = tl.full([BLOCK_X], float("-inf"), tl.float32)
    label = tl.zeros([BLOCK_X], tl.int32)
    odd = tl.zeros([BLOCK_X], tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        class_ptr = masks_ptr + k.to(tl.int64)[:, None] * stride_k
        total = tl.zeros([BLOCK_K, BLOCK_X], tl.float32)
        for row in range(first_row, last_row + 1):
            upper, lower, down = _source(y - tl.minimum(row * stride, H - window), h, side_y)
            for column in range(first_column, last_column + 1):
                left = tl.minimum(column * stride, W - window)
                inside = (x >= left) & (x < left + window)
                # lanes outside read the nearest pixel inside, and are left out
                nearest = tl.minimum(tl.maximum(x - left, 0), window - 1)
                i, after, across = _source(nearest, w, side_x)
                keep = inside[None, :] & (k < K)[:, None]
                at = class_ptr + tl.cast(row * columns + column, tl.int64) * stride_n
                i, after = at + i[None, :] * stride_w, at + after[None, :] * stride_w
                top = tl.load(i + upper * stride_h, keep, 0).to(tl.float32)
                west = top + down * (tl.load(i + lower * stride_h, keep, 0).to(tl.float32) - top)
                top = tl.load(after + upper * stride_h, keep, 0).to(tl.float32)
                east = top + down * (tl.load(after + lower * stride_h, keep, 0).to(tl.float32) - top)
                total += west + across[None, :] * (east - west)
        if odd_ptr is not None:
            # NaN is below nothing
            odd |= tl.max(tl.where(tl.abs(total) <= LARGEST, 0, 1), 0)
        total = tl.where((k < K)[:, None], total, float("-inf"))
        most = tl.max(total, 0)
        winner = tl.min(tl.where(total == most[None, :], k[:, None], K), 0)
        label = tl.where(most > best, winner, label)
        best = tl.maximum(best, most)
    pixel = tl.cast(y, tl.int64) * W + x
    tl.store(labels_ptr + pixel, label.to(labels_ptr.dtype.element_ty), x < W)
    if odd_ptr is not None:
        # whoever writes it, writes the same
        tl.store(odd_ptr + tl.zeros([BLOCK_X], tl.int32), odd, odd > 0)


def merge_windows(
    masks: Tensor,
    size: tuple[int, int],
    window: int,
    stride: int,
    side: tuple[int, int] | None = None,
    *,
    odd: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Class masks of all windows of a picture to its labels, without holding logits.

    Args:
        masks: [R C, K, h, w] of any strides, fp16, bf16 or fp32, finite; 0 < K <= MAX_K. The windows are those of
            `segmenter.window.window_logits`: R rows of C, every `stride` pixels, the last of a side flush with its end.
        size: (H, W) of the picture in pixels, both at least `window`.
        window: side of a window in pixels.
        stride: pixels from one window to the next, 1 to `window`.
        side: (height, width) in pixels that masks stand for, of a window padded to whole patches; None for the window.
        odd: int32 [1], which becomes 1 where a sum of scores is no number or beyond LARGEST, and else stays.
        tile: BLOCK_X pixels of a row a program, BLOCK_K classes compared at once, num_warps; None takes the committed
            one.

    Returns:
        Labels [H, W] uint8, int16 when K > 256.

    Raises:
        ValueError: shapes, dtype or device differ from the above, or a gradient is needed.
    """
    checks.tensor(OP, masks=masks)
    checks.require(masks.dim() == 4, OP, f"masks {list(masks.shape)}: want [windows, K, h, w]")
    n, K, h, w = masks.shape
    H, W = checks.sides(OP, "size", size)
    side_y, side_x = checks.sides(OP, "side", side or (window, window))
    checks.require(0 < K <= MAX_K, OP, f"masks {list(masks.shape)}: want 1 to {MAX_K} classes along axis 1")
    checks.require(0 < stride <= window, OP, f"stride {stride} with window {window}: want 1 to {window}")
    checks.require(window <= min(H, W), OP, f"picture {H}x{W}: want sides of at least the window's {window} pixels")
    checks.require(
        window <= min(side_y, side_x) and min(h, w) > 0, OP, f"masks {h}x{w} of {side_y}x{side_x}: want a whole window"
    )
    checks.require(max(h * side_y, w * side_x) < MAX_SIDES, OP, f"masks {h}x{w} to {side_y}x{side_x}: too large")
    rows, columns = (triton.cdiv(length - window, stride) + 1 for length in (H, W))
    checks.require(n == rows * columns, OP, f"masks of {n} windows: a {H}x{W} picture has {rows} rows of {columns}")
    checks.same_dtype(OP, checks.FLOATS, masks=masks)
    checks.on_gpu(OP, masks=masks)
    checks.inference_only(OP, masks=masks)
    if odd is not None:
        checks.shape(OP, "odd", odd, (1,))
        checks.same_dtype(OP, (torch.int32,), odd=odd)
        checks.on_gpu(OP, odd=odd)
    labels = torch.empty(H, W, dtype=torch.uint8 if K <= 256 else torch.int16, device=masks.device)
    tile = tiles.chosen(OP, tile, tiles.of_device(OP, case_of(K), masks.device))
    _kernel[(triton.cdiv(W, tile["BLOCK_X"]) * H,)](
        *(masks, labels, odd, K, h, w, side_y, side_x, H, W, window, stride, rows, columns, *masks.stride()),
        LARGEST=LARGEST,
        BLOCK_X=tile["BLOCK_X"],
        BLOCK_K=tile["BLOCK_K"],
        num_warps=tile["num_warps"],
    )
    return labels


def case_of(K: int) -> str:
    """The name in the tile data of masks of K classes."""
    few, many = CASES
    return str(few if few >= K else many)


def candidates(architecture: int, case: str) -> Iterator[Tile]:
    """Tiles worth timing."""
    for BLOCK_X in (8, 16, 32, 64):
        for num_warps in (2, 4, 8):
            yield {"BLOCK_X": BLOCK_X, "BLOCK_K": int(case), "num_warps": num_warps}


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture.

    Of the 16-bit masks our kernels leave, channels last (stride 1 along the classes); and `planar`, of the fp32 masks
    that plans give (stride 1 along a row), which tells whether scores are numbers.
    """
    for dtype in DEPLOYED:
        for case in CASES:
            tile = tiles.of_architecture(OP, str(case), architecture)
            for labels in ("u8",) if case == CASES[0] else ("u8", "i16"):
                yield _form(f"{TYPE_NAMES[dtype]}_k{case}", TYPE_NAMES[dtype], labels, tile, "stride_k", ("odd_ptr",))
    for labels in ("u8", "i16"):
        yield _form("fp32_planar", "fp32", labels, PLANAR, "stride_w", ())


def _form(name: str, masks: str, labels: str, tile: Tile, contiguous: str, absent: tuple[str, ...]) -> Specialisation:
    pointers = {"masks_ptr": f"*{masks}", "labels_ptr": f"*{labels}", "odd_ptr": "*i32"}
    sides = ("K", "h", "w", "side_y", "side_x", "H", "W", "window", "stride", "rows", "columns")
    types = pointers | dict.fromkeys((*sides, "stride_n", "stride_k", "stride_h", "stride_w"), "i32")
    block = {"BLOCK_X": tile["BLOCK_X"], "BLOCK_K": tile["BLOCK_K"]}
    constants: dict[str, Any] = {contiguous: 1, "LARGEST": LARGEST} | block | dict.fromkeys(absent)
    return Specialisation(
        name=f"{OP}_{name}{'' if labels == 'u8' else '_int16'}",
        kernel=_kernel,
        types={each: kind for each, kind in types.items() if each not in constants},
        constants=constants,
        aligned=frozenset(each for each in pointers if each not in absent),
        num_warps=tile["num_warps"],
        num_stages=1,
    )
