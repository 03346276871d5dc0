from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

import segmenter_kernels
import segmenter_trt
from segmenter.config import Preprocess
from segmenter.preprocess import affine
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import poisoned

PREPROCESSES = [Preprocess(), Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))]


def pictures(B: int, H: int, W: int) -> Tensor:
    random = torch.Generator().manual_seed(H * W)
    return torch.randint(0, 256, (B, H, W, 3), generator=random, dtype=torch.uint8).to(DEVICE)


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=["half", "imagenet"])
@pytest.mark.parametrize("shape", [(2, 37, 50), (1, 1, 1), (3, 32, 32), (1, 1, 2048)])
def test_every_bit_is_the_cpus(shape: tuple[int, int, int], preprocess: Preprocess) -> None:
    images = pictures(*shape)
    with poisoned():
        planes = segmenter_kernels.normalize(images, preprocess.mean, preprocess.std)
    wanted = segmenter_trt.normalize(images.cpu().numpy(), *affine(preprocess))
    assert np.array_equal(planes.cpu().numpy().view(np.int32), wanted.view(np.int32))


def test_every_value_of_every_colour() -> None:
    images = torch.arange(256, dtype=torch.uint8, device=DEVICE)[None, :, None, None].expand(1, 256, 1, 3).contiguous()
    planes = segmenter_kernels.normalize(images, *([0.1, 0.2, 0.3], [0.7, 0.8, 0.9]))
    wanted = segmenter_trt.normalize(
        images.cpu().numpy(), *affine(Preprocess(mean=(0.1, 0.2, 0.3), std=(0.7, 0.8, 0.9)))
    )
    assert np.array_equal(planes.cpu().numpy(), wanted)


def test_no_images_launch_nothing() -> None:
    assert segmenter_kernels.normalize(pictures(0, 4, 5), (0, 0, 0), (1, 1, 1)).shape == (0, 3, 4, 5)


ones = partial(torch.ones, dtype=torch.uint8, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ones(4, 4, 3)}, r"images \[4, 4, 3\]: want \['any', 'any', 'any', 3\]"),
        ({"images": torch.ones(1, 2**15, 2**15, 3, dtype=torch.uint8, device="meta")}, "images 32768x32768: too large"),
        ({"mean": (0.5,)}, r"mean \(0.5,\), std \(1, 1, 1\): uint8 images need 3 finite numbers each, every std"),
        ({"mean": 0.5}, r"mean 0.5, std \(1, 1, 1\): uint8 images need 3"),
        ({"std": (1, 0, 1)}, r"mean \(0, 0, 0\), std \(1, 0, 1\): uint8 images need 3"),
        ({"std": (1, float("nan"), 1)}, r"mean \(0, 0, 0\), std \(1, nan, 1\): uint8 images need 3"),
        ({"images": torch.ones(1, 4, 4, 3, device=DEVICE)}, "images is torch.float32; this op takes uint8"),
        ({"images": torch.ones(1, 4, 4, 3, dtype=torch.uint8, device="meta")}, "images is on meta"),
        ({"images": ones(1, 3, 4, 4).permute(0, 2, 3, 1)}, "images has strides"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    good = {"images": ones(1, 4, 4, 3), "mean": (0, 0, 0), "std": (1, 1, 1)}
    with pytest.raises(ValueError, match=f"normalize: {message}"):
        segmenter_kernels.normalize(**good | change)
