import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import segmenter_kernels
from segmenter import ops
from segmenter.config import HALF, IMAGENET, Preprocess
from segmenter.model import pad_to_patches
from segmenter.preprocess import normalize
from segmenter_kernels import tiles
from segmenter_kernels.patch_embed import PATCH_SIZES
from segmenter_kernels.patch_tiles import SMALL, candidates, case_of, shared_bytes
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import ARCHITECTURES, DTYPES, inputs, judge

# B, H, W, P, C, E
SHAPES = [
    (2, 64, 96, 16, 192, 1),
    (1, 112, 70, 14, 200, 2),
    (3, 24, 40, 8, 64, 1),
    (1, 64, 32, 32, 33, 0),
    (2, 16, 16, 16, 1, 1),
]
# any height and width, pixels aligned to nothing
PIXEL_SHAPES = [
    (2, 50, 75, 16, 192, 1),
    (1, 111, 57, 14, 72, 2),
    (3, 1, 1, 8, 64, 1),
    (1, 70, 33, 32, 40, 0),
    # by words: whole patches, and not
    (2, 32, 48, 16, 70, 1),
    (2, 27, 60, 16, 70, 1),
    (1, 70, 36, 32, 40, 0),
    (3, 9, 4, 8, 64, 2),
]


def parameters(h: int, w: int, P: int, C: int, E: int, dtype: torch.dtype) -> list[Tensor]:
    return inputs((C, 3, P, P), (C,), (1, E + h * w, C), (1, E, C), dtype=dtype)


def arguments(B: int, H: int, W: int, P: int, C: int, E: int, dtype: torch.dtype) -> list[Tensor]:
    return [*inputs((B, 3, H, W), dtype=dtype, seed=1), *parameters(H // P, W // P, P, C, E, dtype)]


def pixels_of(B: int, H: int, W: int) -> Tensor:
    return torch.randint(0, 256, (B, H, W, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8).to(DEVICE)


def normalised(pixels: Tensor, spec: Preprocess, P: int, dtype: torch.dtype) -> Tensor:
    return pad_to_patches(normalize(np.asarray(pixels.cpu()), spec).to(DEVICE, dtype), P)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    judge(segmenter_kernels.patch_embed, ops.patch_embed, arguments(*shape, dtype))


@pytest.mark.parametrize("spec", [HALF, IMAGENET], ids=["half", "imagenet"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PIXEL_SHAPES, ids=str)
def test_pixels_agree_with_float64(shape: tuple[int, ...], dtype: torch.dtype, spec: Preprocess) -> None:
    B, H, W, P, C, E = shape
    pixels = pixels_of(B, H, W)
    image = normalised(pixels, spec, P, dtype)
    tensors = [image, *parameters(image.shape[2] // P, image.shape[3] // P, P, C, E, dtype)]

    def kernel(_: Tensor, *rest: Tensor) -> Tensor:
        return segmenter_kernels.patch_embed(pixels, *rest, mean=spec.mean, std=spec.std)

    judge(kernel, ops.patch_embed, tensors)


@pytest.mark.parametrize("spec", [HALF, IMAGENET], ids=["half", "imagenet"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pixel_value_is_normalised_to_the_bit(dtype: torch.dtype, spec: Preprocess) -> None:
    P, C = 8, 192
    pixels = torch.arange(256, dtype=torch.uint8, device=DEVICE).reshape(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    # each channel of the output is one pixel of the patch, exactly
    weight = torch.eye(C, device=DEVICE).reshape(C, 3, P, P).to(dtype)
    nothing = [torch.zeros(n, device=DEVICE, dtype=dtype) for n in ((C,), (1, 4, C), (1, 0, C))]
    got = segmenter_kernels.patch_embed(pixels, weight, *nothing, mean=spec.mean, std=spec.std)
    assert torch.equal(got, ops.patch_embed(normalised(pixels, spec, P, dtype), weight, *nothing))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("P", PATCH_SIZES)
@pytest.mark.parametrize("pixels", [False, True], ids=["normalised", "uint8"])
@pytest.mark.parametrize("outputs", [1, SMALL], ids=["small", "large"])
def test_pixels_and_floats_agree_on_every_architecture(P: int, pixels: bool, outputs: int, architecture: int) -> None:
    image = pixels_of(2, 2 * P, 3 * P)
    floats = normalised(image, IMAGENET, P, torch.float16)
    tile = tiles.of_architecture("patch_embed", case_of(P, torch.float16, pixels, outputs), architecture)
    extra: dict[str, Any] = {"mean": IMAGENET.mean, "std": IMAGENET.std} if pixels else {}

    def kernel(x: Tensor, *rest: Tensor) -> Tensor:
        return segmenter_kernels.patch_embed(image if pixels else x, *rest, **extra, tile=tile)

    judge(kernel, ops.patch_embed, [floats, *parameters(2, 3, P, 130, 2, torch.float16)])


@pytest.mark.parametrize("pixels", [False, True], ids=["normalised", "uint8"])
@pytest.mark.parametrize(("P", "ROWS"), [(14, 4), (8, 16)])
def test_steps_that_end_past_the_patch(P: int, ROWS: int, pixels: bool) -> None:
    tile = {"BLOCK_M": 16, "BLOCK_C": 32, "ROWS": ROWS, "num_warps": 4, "num_stages": 2}
    image = pixels_of(1, 2 * P, 3 * P)
    extra: dict[str, Any] = {"mean": HALF.mean, "std": HALF.std} if pixels else {}

    def kernel(x: Tensor, *rest: Tensor) -> Tensor:
        return segmenter_kernels.patch_embed(image if pixels else x, *rest, **extra, tile=tile)

    floats = normalised(image, HALF, P, torch.float32)
    judge(kernel, ops.patch_embed, [floats, *parameters(2, 3, P, 40, 1, torch.float32)])


def test_more_images_than_a_program_has_patches() -> None:
    tile = {"BLOCK_M": 16, "BLOCK_C": 16, "ROWS": 4, "num_warps": 4, "num_stages": 2}
    tensors = arguments(5, 24, 24, 8, 20, 3, torch.float32)
    judge(lambda *x: segmenter_kernels.patch_embed(*x, tile=tile), ops.patch_embed, tensors)
    tensors = arguments(37, 8, 8, 8, 20, 3, torch.float32)
    judge(lambda *x: segmenter_kernels.patch_embed(*x, tile=tile), ops.patch_embed, tensors)


def test_an_image_of_nan_leaves_the_others_bit_equal() -> None:
    image, *rest = arguments(3, 28, 42, 14, 40, 1, torch.float16)
    clean = segmenter_kernels.patch_embed(image, *rest)
    image[1] = float("nan")
    dirty = segmenter_kernels.patch_embed(image, *rest)
    assert torch.equal(clean[[0, 2]], dirty[[0, 2]])
    assert dirty[1, 1:].isnan().all()
    assert torch.equal(clean[1, 0], dirty[1, 0])


@pytest.mark.skipif(DEVICE == "cuda", reason="PyTorch's own memory begins at multiples of 512 bytes there")
@pytest.mark.parametrize(("start", "offset"), [(0, 0), (1, 3), (2, 2), (3, 1), (0, 1), (1, 0)])
def test_pixels_at_any_byte_of_memory_that_begins_at_any(start: int, offset: int) -> None:
    # as memory of another library may, here at `start` past a multiple of 4
    rest = parameters(1, 1, 16, 16, 1, torch.float32)
    image, extra = pixels_of(1, 16, 16), {"mean": HALF.mean, "std": HALF.std}
    memory = np.zeros(image.numel() + 8, np.uint8)
    begins = (start - memory.ctypes.data) % 4
    given = torch.from_numpy(memory[begins:])[offset:][: image.numel()].view(image.shape).copy_(image)
    assert (given.data_ptr() - start) % 4 == given.storage_offset() == offset
    wanted = segmenter_kernels.patch_embed(image, *rest, **extra)
    torch.testing.assert_close(segmenter_kernels.patch_embed(given, *rest, **extra), wanted)


def test_no_images_launch_nothing() -> None:
    assert segmenter_kernels.patch_embed(*arguments(0, 16, 16, 8, 16, 1, torch.float32)).shape == (0, 5, 16)


ones = partial(torch.ones, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": ones(24, 3, 64)}, r"weight \[24, 3, 64\]: want \[C, 3, P, P\]"),
        ({"weight": ones(24, 1, 8, 8)}, r"weight \[24, 1, 8, 8\]: want \['any', 3, 8, 8\]"),
        ({"weight": ones(24, 3, 4, 4)}, r"weight \[24, 3, 4, 4\]: want patches of 8, 14, 16 or 32"),
        ({"weight": ones(0, 3, 8, 8)}, "weight .*: want at least 1 channel"),
        ({"image": ones(1, 1, 16, 24)}, r"image \[1, 1, 16, 24\]: want \['any', 3, 'any', 'any'\]"),
        ({"image": ones(1, 3, 17, 24)}, "image 17x24: want sides that are multiples of 8; pad it"),
        ({"image": ones(1, 3, 0, 24)}, "image 0x24: want at least 1x1"),
        ({"image": ones(1, 3, 8, 24)}, r"position \[1, 7, 24\]: want \[1, 4, 24\]"),
        ({"image": ones(1, 3, 16, 24).half()}, "image is torch.float16 and weight torch.float32"),
        ({"image": ones(1, 3, 24, 16).mT}, "image has strides"),
        ({"image": ones(1, 3, 16, 24, dtype=torch.uint8)}, r"image .*: want \['any', 'any', 'any', 3\]"),
        ({"image": ones(1, 16, 24, 3, dtype=torch.uint8)}, "mean None, std None: uint8 images need 3 finite numbers"),
        (
            {"image": ones(1, 16, 24, 3, dtype=torch.uint8), "mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)},
            "mean .*: uint8 images need 3 finite numbers",
        ),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "mean and std are for uint8 images"),
        ({"image": ones(1, 3, 1, 1).expand(1, 3, 2**15, 2**15)}, "image 32768x32768: too large"),
        ({"weight": None}, "weight is of type NoneType: want a tensor"),
        ({"bias": ones(23)}, r"bias \[23\]: want \[24\]"),
        ({"tokens": ones(1, 1, 23)}, r"tokens \[1, 1, 23\]: want \[1, 'any', 24\]"),
        ({"weight": ones(24, 3, 8, 8, requires_grad=True)}, "weight needs a gradient"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    names = ("image", "weight", "bias", "position", "tokens")
    good = dict(zip(names, arguments(1, 16, 24, 8, 24, 1, torch.float32), strict=True))
    with pytest.raises(ValueError, match=f"patch_embed: {message}"):
        segmenter_kernels.patch_embed(**good | change)


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_case_has_a_tile_that_fits(architecture: int) -> None:
    for P, dtype, pixels, outputs in itertools.product(PATCH_SIZES, DTYPES, (False, True), (1, SMALL)):
        case = case_of(P, dtype, pixels, outputs)
        tile = tiles.of_architecture("patch_embed", case, architecture)
        assert shared_bytes(tile, P, dtype.itemsize, pixels) <= tiles.SHARED_MEMORY_BYTES[architecture]
        assert 0 < len(list(candidates(architecture, case))) <= 16
