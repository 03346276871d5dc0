"""uint8 RGB images on the GPU to the planes a network takes: bit for bit as `segmenter_trt.normalize` on a CPU.

    planes[b, c, y, x] = table[c, images[b, y, x, c]],  table[c, v] = v scale[c] + shift[c]
    scale = 1 / (255 std),  shift = -mean / std, each rounded to float32 once; product and sum are rounded too

A colour has 256 values: read from a table, they need no arithmetic here, whose roundings a compiler may merge.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import checks, tables, tiles
from segmenter_kernels.resize import MAX_ELEMENTS
from segmenter_kernels.specialisation import Specialisation
from segmenter_kernels.tiles import Tile

OP = "normalize"
VALUES = 256
TILE: Tile = {"BLOCK": 1024, "num_warps": 4}  # one for all GPUs: every value is read and written once, whatever it is


@triton.jit
def _kernel(images_ptr, table_ptr, planes_ptr, pixels, VALUES: tl.constexpr, BLOCK: tl.constexpr):
    """[B, pixels, 3] to [B, 3, pixels]."""
    blocks = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    keep = pixel < pixels
    source_ptr = images_ptr + image * pixels * 3 + pixel * 3
    for colour in tl.static_range(3):
        value = tl.load(source_ptr + colour, keep, 0).to(tl.int32)
        normalized = tl.load(table_ptr + colour * VALUES + value, keep, 0)
        tl.store(planes_ptr + (image * 3 + colour) * pixels + pixel, normalized, keep)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], *, tile: Tile | None = None) -> Tensor:
    """Images as the network is given them.

    Before it is captured in a CUDA graph, call it once with the same numbers: their table must be on the GPU by then.

    Args:
        images: uint8 [B, H, W, 3], contiguous.
        mean: of colours from 0 to 1, of each channel.
        std: likewise.
        tile: BLOCK pixels a program, num_warps; None takes `TILE`.

    Returns:
        fp32 [B, 3, H, W].

    Raises:
        ValueError: shapes, dtype or device differ from the above, mean and std are not 3 numbers, std above 0, or a
            graph is being captured and the table is missing.
    """
    checks.shape(OP, "images", images, (-1, -1, -1, 3))
    B, H, W, _ = images.shape
    checks.require(3 * H * W < MAX_ELEMENTS, OP, f"images {H}x{W}: too large")
    checks.colours(OP, mean, std)
    checks.same_dtype(OP, (torch.uint8,), images=images)
    checks.on_gpu(OP, images=images)
    checks.contiguous(OP, images=images)
    tile = tiles.chosen(OP, tile, TILE)
    planes = torch.empty(B, 3, H, W, dtype=torch.float32, device=images.device)
    if planes.numel():
        (table,) = _table(images.device, tuple(mean), tuple(std))
        _kernel[(triton.cdiv(H * W, tile["BLOCK"]) * B,)](
            *(images, table, planes, H * W), VALUES=VALUES, BLOCK=tile["BLOCK"], num_warps=tile["num_warps"]
        )
    return planes


@tables.kept(OP, most=8)
def _table(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[np.ndarray]:
    """What each value of each colour becomes, fp32 [3, 256]."""
    scale = np.array([[1 / (255 * each)] for each in std], np.float32)
    shift = np.array([[-each / by] for each, by in zip(mean, std, strict=True)], np.float32)
    return (np.arange(VALUES, dtype=np.float32) * scale + shift,)


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The one form there is."""
    yield Specialisation(
        name=f"{OP}_u8",
        kernel=_kernel,
        types={"images_ptr": "*u8", "table_ptr": "*fp32", "planes_ptr": "*fp32", "pixels": "i32"},
        constants={"VALUES": VALUES, "BLOCK": TILE["BLOCK"]},
        aligned=frozenset(),
        num_warps=TILE["num_warps"],
        num_stages=1,
    )
