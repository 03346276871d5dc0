"""uint8 RGB images on the GPU to another size: bit for bit as `segmenter_trt.resize`, and with it Pillow 13, on a CPU.

    pixel t of a side lies at  c = (t + 1/2) s,  s = from / to,  and takes what is nearer than  r = max(s, 1):
    weight[j] = max(1 - |j + 1/2 - c| / r, 0) over their sum, in fixed point of 22 bits
    pass: clamp((1/2 + sum of weight[j] pixel[j]), 0, 255), cut to whole colours

Along rows first, unless the height shrinks by more than twice what the width does; a side that stays is not touched.
Weights are made on the host in float64, as Pillow makes them, and kept for the sizes used last. So frames that a
decoder leaves on the GPU get the pixels that an engine's accuracy was measured on.
"""

from collections.abc import Iterator

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import checks, tables, tiles
from segmenter_kernels.specialisation import Specialisation
from segmenter_kernels.tiles import Tile

OP = "resize"
PRECISION = 22  # bits after the point: 8 for the colour and 2 spare ones fill an int32
TILE: Tile = {"BLOCK": 512, "num_warps": 4}  # one for all GPUs: every value is read and written once, whatever it is
MAX_ELEMENTS = 2**31 - 2**16  # of an image, so that positions fit int32


@triton.jit
def _kernel(
    images_ptr, first_ptr, weights_ptr, resized_ptr, length, to, inner, taps,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One pass: [outer, length, inner] to [outer, to, inner]."""
    blocks = tl.cdiv(to * inner, BLOCK)
    outer = (tl.program_id(0) // blocks).to(tl.int64)
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    keep = element < to * inner
    t = element // inner
    source_ptr = images_ptr + outer * length * inner + tl.load(first_ptr + t, keep, 0) * inner + element % inner
    total = tl.full([BLOCK], 1 << (PRECISION - 1), tl.int32)
    for tap in range(taps):
        weight = tl.load(weights_ptr + t * taps + tap, keep, 0)
        # beyond the last pixel there is no weight
        total += weight * tl.load(source_ptr + tap * inner, keep & (weight != 0), 0).to(tl.int32)
    colour = tl.minimum(total >> PRECISION, 255)
    tl.store(resized_ptr + outer * to * inner + element, colour.to(tl.uint8), keep)


def resize(images: Tensor, size: tuple[int, int], *, tile: Tile | None = None) -> Tensor:
    """Images to another size, bilinearly, the filter widened to the scale where a side shrinks.

    Before it is captured in a CUDA graph, call it once with the same sizes: their weights must be on the GPU by then.

    Args:
        images: uint8 [B, H, W, 3], contiguous.
        size: (H', W') to resize to.
        tile: BLOCK values a program, num_warps; None takes `TILE`.

    Returns:
        uint8 [B, H', W', 3]; the images themselves where both sides stay.

    Raises:
        ValueError: shapes, dtype or device differ from the above, or a graph is being captured and weights are missing.
    """
    checks.shape(OP, "images", images, (-1, -1, -1, 3))
    B, H, W, _ = images.shape
    rows, columns = checks.sides(OP, "size", size)
    checks.require(min(H, W, rows, columns) > 0, OP, f"images {H}x{W} to {rows}x{columns}: want sides of at least 1")
    checks.require(
        3 * max(H, rows) * max(W, columns) < MAX_ELEMENTS, OP, f"images {H}x{W} to {rows}x{columns}: too large"
    )
    checks.same_dtype(OP, (torch.uint8,), images=images)
    checks.on_gpu(OP, images=images)
    checks.contiguous(OP, images=images)
    tile = tiles.chosen(OP, tile, TILE)
    if not B:
        return images.new_empty(0, rows, columns, 3)
    # the order decides how the first pass rounds, so it is part of the result
    columns_first = rows < H and H - rows > 2 * (W - columns)
    for axis in (1, 2) if columns_first else (2, 1):
        images = _pass(images, axis, size[axis - 1], tile)
    return images


def _pass(images: Tensor, axis: int, to: int, tile: Tile) -> Tensor:
    if images.shape[axis] == to:
        return images
    shape = list(images.shape)
    length, shape[axis] = shape[axis], to
    resized = images.new_empty(shape)
    first, weights = _filter(images.device, length, to)
    outer, inner = shape[0] * (shape[1] if axis == 2 else 1), 3 if axis == 2 else shape[2] * 3
    _kernel[(triton.cdiv(to * inner, tile["BLOCK"]) * outer,)](
        *(images, first, weights, resized, length, to, inner, weights.shape[1]),
        PRECISION=PRECISION,
        BLOCK=tile["BLOCK"],
        num_warps=tile["num_warps"],
    )
    return resized


@tables.kept(OP, most=64)
def _filter(length: int, to: int) -> tuple[np.ndarray, np.ndarray]:
    """The first pixel that makes each of `to`, int32 [to], and how much of it and those after it, int32 [to, taps]."""
    scale = length / to
    support = max(scale, 1.0)
    center = (np.arange(to) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), length)
    pixel = first[:, None] + np.arange(int((end - first).max()))
    exact = np.maximum(1.0 - np.abs((pixel - center[:, None] + 0.5) * (1.0 / support)), 0.0)
    exact[pixel >= end[:, None]] = 0.0
    total = np.zeros(to)
    for column in exact.T:  # in this order, which decides the last bit
        total += column
    weights = (0.5 + exact / total[:, None] * (1 << PRECISION)).astype(np.int32)
    return first.astype(np.int32), weights


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The one form there is."""
    pointers = {"images_ptr": "*u8", "first_ptr": "*i32", "weights_ptr": "*i32", "resized_ptr": "*u8"}
    yield Specialisation(
        name=f"{OP}_u8",
        kernel=_kernel,
        types=pointers | dict.fromkeys(("length", "to", "inner", "taps"), "i32"),
        constants={"PRECISION": PRECISION, "BLOCK": TILE["BLOCK"]},
        aligned=frozenset(pointers),
        num_warps=TILE["num_warps"],
        num_stages=1,
    )
