from functools import partial

import pytest
import torch
from torch import Tensor

import segmenter_kernels
import segmenter_trt
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import poisoned

# (H, W), size: larger, smaller, one side of each, halves (where rounding decides), columns first, sides that stay, one
# pixel to many and back
SIZES = [
    ((9, 13), (17, 31)),
    ((37, 50), (11, 16)),
    ((20, 31), (33, 12)),
    ((16, 24), (32, 12)),
    ((61, 20), (7, 18)),
    ((12, 40), (12, 25)),
    ((40, 12), (25, 12)),
    ((5, 6), (5, 6)),
    ((1, 1), (6, 5)),
    ((19, 23), (1, 1)),
    ((3, 500), (4, 97)),
]


def pictures(B: int, H: int, W: int) -> Tensor:
    """Noise over the whole range, with the ends of it beside each other."""
    random = torch.Generator().manual_seed(H * W)
    images = torch.randint(0, 256, (B, H, W, 3), generator=random, dtype=torch.uint8)
    images[:, ::3, ::2] = 255
    images[:, 1::3, ::2] = 0
    return images.to(DEVICE)


def on_cpu(images: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.stack([torch.from_numpy(segmenter_trt.resize(each.cpu().numpy(), *size, 1)) for each in images])


@pytest.mark.parametrize(("old", "size"), SIZES, ids=str)
def test_every_bit_is_the_cpus(old: tuple[int, int], size: tuple[int, int]) -> None:
    images = pictures(2, *old)
    with poisoned():
        resized = segmenter_kernels.resize(images, size)
    assert torch.equal(resized.cpu(), on_cpu(images, size))


@pytest.mark.parametrize("tile", [{"BLOCK": 256, "num_warps": 4}, {"BLOCK": 2048, "num_warps": 8}], ids=str)
def test_every_tile_gives_the_same_pixels(tile: dict[str, int]) -> None:
    images = pictures(1, 30, 21)
    assert torch.equal(segmenter_kernels.resize(images, (13, 40), tile=tile).cpu(), on_cpu(images, (13, 40)))


def test_no_images_launch_nothing() -> None:
    assert segmenter_kernels.resize(pictures(0, 4, 4), (8, 9)).shape == (0, 8, 9, 3)


ones = partial(torch.ones, dtype=torch.uint8, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ones(4, 4, 3)}, r"images \[4, 4, 3\]: want \['any', 'any', 'any', 3\]"),
        ({"images": ones(1, 4, 4, 4)}, r"images \[1, 4, 4, 4\]: want"),
        ({"images": ones(1, 0, 4, 3)}, "images 0x4 to 8x9: want sides of at least 1"),
        ({"size": 8}, r"size 8: want \(height, width\) in whole pixels"),
        ({"size": (4.5, 8)}, r"size \(4.5, 8\): want \(height, width\) in whole pixels"),
        ({"size": (8, 0)}, "images 4x4 to 8x0: want sides of at least 1"),
        ({"size": (2**15, 2**15)}, "images 4x4 to 32768x32768: too large"),
        ({"images": torch.ones(1, 4, 4, 3, device=DEVICE)}, "images is torch.float32; this op takes uint8"),
        ({"images": torch.ones(1, 4, 4, 3, dtype=torch.uint8, device="meta")}, "images is on meta"),
        ({"images": ones(1, 3, 4, 4).permute(0, 2, 3, 1)}, "images has strides"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    good = {"images": ones(1, 4, 4, 3), "size": (8, 9)}
    with pytest.raises(ValueError, match=f"resize: {message}"):
        segmenter_kernels.resize(**good | change)
