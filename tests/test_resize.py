"""segmenter_trt.resize beside Pillow, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from segmenter.datasets.fitted import fit

segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")

PILLOW = int(PIL.__version__.partition(".")[0])
IMAGE = np.zeros((4, 6, 3), np.uint8)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def in_two_steps(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A side at a time, in the order `resize` promises: the height first where it shrinks by over twice as much."""
    lost = image.shape[0] - height, image.shape[1] - width
    sides = (height, image.shape[1]) if lost[0] > max(0, 2 * lost[1]) else (image.shape[0], width)
    return by_pillow(by_pillow(image, *sides), height, width)


def odd_sizes(count: int) -> list[tuple[int, int, int, int]]:
    """Old and new height and width: up, down and mixed, every few a side of one pixel or one that stays."""
    rng = np.random.default_rng(7)
    sizes = []
    for index, (h, w, height, width) in enumerate(rng.integers(1, 200, (count, 4)).tolist()):
        one, kept = index % 5 == 1, index % 7 == 1
        sizes.append((1 if one else h, w, height if not kept else 1 if one else h, 1 if index % 5 == 2 else width))
    return sizes


def test_resize_gives_pillows_pixels() -> None:
    for index, (h, w, height, width) in enumerate(odd_sizes(100)):
        image = noise(h, w, index)
        resized = segmenter_trt.resize(image, height, width)
        assert resized.shape == (height, width, 3)
        np.testing.assert_array_equal(resized, in_two_steps(image, height, width), f"{h}x{w} to {height}x{width}")


@pytest.mark.skipif(PILLOW < 13, reason="Pillow before 13 goes along rows first, whatever the sizes")
def test_resize_gives_the_pixels_datasets_are_fitted_by() -> None:
    for index, (h, w, height, width) in enumerate(odd_sizes(100)):
        image = noise(h, w, index)
        np.testing.assert_array_equal(segmenter_trt.resize(image, height, width), fit(image, (height, width)))


def test_resize_gives_pillows_pixels_of_real_images(shared: Path) -> None:
    files = sorted((shared / "data/camvid").rglob("*.png"))
    photographs = [file for file in files if Image.open(file).mode == "RGB"]
    if not photographs:
        pytest.skip("no CamVid images in shared/data/camvid")
    rng = np.random.default_rng(8)
    for file in photographs[:: max(1, len(photographs) // 100)][:100]:
        image = np.asarray(Image.open(file))
        height, width = (int(side) for side in rng.integers(17, 700, 2))
        np.testing.assert_array_equal(
            segmenter_trt.resize(image, height, width),
            in_two_steps(image, height, width),
            f"{file.name} {height}x{width}",
        )


def test_resize_does_not_depend_on_threads() -> None:
    image = noise(97, 131)
    for height, width in ((40, 200), (300, 20), (97, 50), (12, 131)):
        expected = segmenter_trt.resize(image, height, width, 1)
        for threads in (0, 2, 5):
            np.testing.assert_array_equal(segmenter_trt.resize(image, height, width, threads), expected)


BAD_RESIZE_CALLS = [
    pytest.param((IMAGE.astype(np.float32), 8, 8), TypeError, "wanted uint8", id="float image"),
    pytest.param((IMAGE[None], 8, 8), ValueError, r"wanted uint8 \[H, W, 3\]", id="4D"),
    pytest.param((IMAGE[:, ::-1], 8, 8), ValueError, "ascontiguousarray", id="flipped"),
    pytest.param((IMAGE[:0], 8, 8), ValueError, "size 0x6", id="no pixel"),
    pytest.param((IMAGE, 0, 8), ValueError, "size 0x8", id="to no pixel"),
    pytest.param((IMAGE, 8, 1 << 40), ValueError, "sides of 1 to", id="huge"),
    pytest.param((IMAGE, 8, 8, -1), ValueError, "threads -1", id="threads"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_RESIZE_CALLS)
def test_bad_resizes_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        segmenter_trt.resize(*arguments)
