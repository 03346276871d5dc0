"""Tiles of `patch_embed`: the cases they are committed for, what they need, and those worth timing."""

import itertools
from collections.abc import Iterator

import torch
import triton

from segmenter_kernels import tiles
from segmenter_kernels.tiles import Tile

SMALL = 2**21  # outputs with fewer elements leave multiprocessors idle unless tiles are small


def registers(tile: Tile, even: bool) -> int | None:
    """Registers a thread may have. The masks of images that end inside a patch want some more than tiles say."""
    return tile.get("maxnreg") or None if even else None


def case_of(P: int, dtype: torch.dtype, pixels: bool, outputs: int) -> str:
    """The name in the tile data: the patch size, what is read, and whether the output has few elements."""
    size = "small" if outputs < SMALL else "large"
    return f"{P}_fp32" if dtype == torch.float32 else f"{P}_uint8_{size}" if pixels else f"{P}_{size}"


def shared_bytes(tile: Tile, P: int, itemsize: int, pixels: bool) -> int:
    """Shared memory of a program at most: a stage holds a block of patches and one (or three) of weights."""
    step = tile["ROWS"] * triton.next_power_of_2(P)
    patches, weights = tile["BLOCK_M"] * step * itemsize, tile["BLOCK_C"] * step * itemsize
    if pixels:
        # of each two pixels' six bytes two words are kept, of all colours
        return tile["num_stages"] * (tile["BLOCK_M"] * step * 4 + 3 * weights) + patches
    return tile["num_stages"] * (patches + weights)


def candidates(architecture: int, case: str) -> Iterator[Tile]:
    """Tiles worth timing: those that fit the architecture's shared memory."""
    P, itemsize, pixels = int(case.split("_")[0]), 4 if case.endswith("fp32") else 2, "uint8" in case
    small = ((64, 64, 4, 0), (64, 128, 4, 0), (128, 64, 4, 0), (128, 128, 8, 128))
    large = ((128, 128, 8, 128), (128, 256, 8, 0), (256, 128, 8, 0), (128, 64, 4, 0))
    shapes = large if case.endswith("large") else small
    # a stage of pixels holds all colours
    depths = ((32, 3), (16, 4), (64, 3)) if pixels else ((64, 3), (64, 4), (32, 4))
    for (BLOCK_M, BLOCK_C, num_warps, maxnreg), (step, num_stages) in itertools.product(shapes, depths):
        sizes = {"BLOCK_M": BLOCK_M, "BLOCK_C": BLOCK_C, "ROWS": min(P, max(1, step // triton.next_power_of_2(P)))}
        tile = sizes | {"num_warps": num_warps, "num_stages": num_stages}
        # so that two programs share a multiprocessor
        tile |= {"maxnreg": maxnreg} if architecture == 90 else {}
        if shared_bytes(tile, P, itemsize, pixels) <= tiles.SHARED_MEMORY_BYTES[architecture]:
            yield tile
