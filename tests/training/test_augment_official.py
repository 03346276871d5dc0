"""Augmentation against MMSegmentation's rules, each computed here a second time and another way."""

import colorsys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmenter.config import HALF
from segmenter.training.augment import PRESETS, Augmentation, Draw, augment, cut_image, cut_labels, draw
from segmenter.training.colour import Colours, distort

RANDOM = np.random.default_rng(8)
PLAIN = PRESETS["none"]
ADE20K = Augmentation(short_side=512)
PASCAL_CONTEXT = Augmentation(short_side=520, long_ratio=8)
CITYSCAPES = Augmentation(short_side=1024, long_ratio=2)


def rescaled(shape: tuple[int, int], short_side: int, ratio: int, scale: float) -> tuple[int, int]:
    """mmcv's rescale_size of an image to `(ratio * short_side, short_side)` times a drawn ratio, kept in proportion."""
    long_edge, short_edge = int(ratio * short_side * scale), int(short_side * scale)
    factor = min(long_edge / max(shape), short_edge / min(shape))
    return int(shape[0] * factor + 0.5), int(shape[1] * factor + 0.5)


@pytest.mark.parametrize(
    ("settings", "ratio", "crop"), [(ADE20K, 4, 512), (PASCAL_CONTEXT, 8, 480), (CITYSCAPES, 2, 768)]
)
@pytest.mark.parametrize("shape", [(512, 683), (683, 512), (1024, 2048), (200, 1900), (375, 500)])
def test_resized_sizes(settings: Augmentation, ratio: int, crop: int, shape: tuple[int, int]) -> None:
    assert settings.short_side is not None
    labels = np.zeros(shape, np.uint8)
    for scale in (0.5, 0.77, 1.0, 1.31, 2.0):
        drawn = draw(labels, (0,), (crop, crop), replace(settings, scale=(scale, scale), max_class_share=1.0))
        assert drawn.resized == rescaled(shape, settings.short_side, ratio, scale)


def test_scale_1_covers_the_crop_where_no_side_is_given() -> None:
    """For square crops that is ADE20K's rule, whose short side is the crop's."""
    for shape in ((512, 683), (300, 222), (100, 700)):
        for scale in (0.5, 0.777, 1.0, 1.999):
            drawn = draw(np.zeros(shape, np.uint8), (0,), (512, 512), replace(PLAIN, scale=(scale, scale)))
            assert drawn.resized == rescaled(shape, 512, 4, scale)
    assert draw(np.zeros((360, 480), np.uint8), (0,), (360, 640), PLAIN).resized == (480, 640)


def test_scales_are_uniform() -> None:
    labels = np.zeros((1000, 1000), np.uint8)
    settings = Augmentation(short_side=1000, max_class_share=1.0)
    scales = np.sort([draw(labels, (1, seed), (64, 64), settings).resized[0] / 1000 for seed in range(2000)])
    assert scales[0] >= 0.5
    assert scales[-1] <= 2.0
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) one in a thousand fair samples
    assert np.abs((scales - 0.5) / 1.5 - np.arange(1, 2001) / 2000).max() < 1.95 / 2000**0.5


@pytest.mark.parametrize("resized", [(37, 49), (150, 201), (299, 401), (531, 700), (300, 400)])
def test_images_are_resized_bilinearly_without_antialiasing(resized: tuple[int, int]) -> None:
    """Against floating point; Pillow rounds after each direction, a level in all, PyTorch's 8-bit kernel no more."""
    image = RANDOM.integers(0, 256, (300, 400, 4), dtype=np.uint8)
    box = resized[1] // 5, resized[0] // 4, resized[1] - 3, resized[0] - 1
    found = cut_image(image, Draw(resized, box, False, Colours()))
    planar = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float64))
    wanted = F.interpolate(planar, resized, mode="bilinear", align_corners=False)[
        0, :, box[1] : box[3], box[0] : box[2]
    ]
    difference = found.astype(np.float64) - wanted.numpy().transpose(1, 2, 0)
    # Pillow's and PyTorch's fixed-point weights are off by up to 2^-8 of a level's 255
    assert np.abs(difference).max() <= 1 + 255 / 2**8 / 2
    # at exactly half the size every pixel is a tie, rounded up in each direction: a quarter of a level
    assert np.abs(difference.mean((0, 1))).max() < (0.27 if resized == (150, 201) else 0.1)


def test_labels_are_those_at_the_centres_of_the_pixels() -> None:
    labels = RANDOM.integers(0, 255, (23, 31), dtype=np.uint8)
    for resized in ((11, 13), (23, 31), (46, 62), (100, 77)):
        found = cut_labels(labels, resized, (2, 3, 9, 8))
        for y in range(5):
            for x in range(7):
                row = Fraction(2 * (3 + y) + 1, 2) * 23 / resized[0]
                column = Fraction(2 * (2 + x) + 1, 2) * 31 / resized[1]
                assert found[y, x] == labels[int(row), int(column)]


def test_crops_are_drawn_again_as_mmsegmentation_does() -> None:
    """The same chances, spent on its rule: up to ten more tries while one class has three quarters of what counts."""
    labels = np.zeros((96, 128), np.uint8)
    labels[:, 90:] = 1
    labels[:20, :60] = 255
    labels[70:, 100:] = 2
    settings = replace(PLAIN, max_class_share=0.75, short_side=96)
    tries = []
    for seed in range(150):
        random = np.random.default_rng((5, seed))
        random.uniform(1.0, 1.0)

        def crop(random: np.random.Generator = random) -> tuple[int, int, int, int]:
            top, left = int(random.integers(0, 96 - 48 + 1)), int(random.integers(0, 128 - 48 + 1))
            return left, top, left + 48, top + 48

        box, count = crop(), 0
        for _ in range(10):
            values, counts = np.unique(labels[box[1] : box[3], box[0] : box[2]], return_counts=True)
            counts = counts[values != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
                break
            box, count = crop(), count + 1
        assert draw(labels, (5, seed), (48, 48), settings).box == box
        tries.append(count)
    assert min(tries) == 0
    assert max(tries) > 3


def distorted(colour: tuple[int, int, int], colours: Colours) -> list[float]:
    """One pixel by the standard library's HSV, in double precision."""

    def clipped(values: list[float]) -> list[float]:
        return [min(max(value, 0.0), 255.0) for value in values]

    pixel = clipped([value + colours.brightness for value in colour])
    if colours.contrast_first:
        pixel = clipped([value * colours.contrast for value in pixel])
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in pixel))
    turned = colorsys.hsv_to_rgb((hue + colours.hue / 360) % 1, min(saturation * colours.saturation, 1.0), value)
    pixel = [255 * part for part in turned]
    return pixel if colours.contrast_first else clipped([value * colours.contrast for value in pixel])


@pytest.mark.parametrize(
    "colours",
    [
        Colours(),
        Colours(brightness=-27.5),
        Colours(brightness=30, contrast=1.4),
        Colours(contrast=0.6, contrast_first=False),
        Colours(saturation=0.5),
        Colours(saturation=1.5),
        Colours(hue=36),
        Colours(hue=-36),
        Colours(brightness=12, contrast=1.3, contrast_first=False, saturation=1.37, hue=-21),
    ],
)
def test_colours_against_hsv_of_the_standard_library(colours: Colours) -> None:
    picked = [(0, 0, 0), (255, 255, 255), (7, 7, 7), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 200, 10), (1, 0, 255)]
    picked += [tuple(map(int, colour)) for colour in RANDOM.integers(0, 256, (200, 3))]  # type: ignore[misc]
    images = torch.tensor(picked, dtype=torch.float64).T[None, :, None]
    found = distort(images, (colours,))[0, :, 0].T
    wanted = torch.tensor([distorted(colour, colours) for colour in picked], dtype=torch.float64)
    assert (found - wanted).abs().max() < 1e-3  # grey needs a floor of 1e-6 under its chroma
    assert found.min() >= 0
    assert found.max() <= 255
    single = distort(images.float(), (colours,))[0, :, 0].T
    assert (single - wanted).abs().max() < 255 * 2**-17 * 8  # eight roundings of 24 bits, a hue of 6 in sixths


def test_colours_of_a_batch_are_those_of_each_alone() -> None:
    images = torch.rand(3, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 255
    each = (Colours(brightness=9, hue=30), Colours(), Colours(contrast=0.7, contrast_first=False, saturation=1.2))
    together = distort(images, each)
    for index, colours in enumerate(each):
        torch.testing.assert_close(together[index : index + 1], distort(images[index : index + 1], (colours,)))
    assert torch.equal(together[:, 3], images[:, 3])


def test_colours_are_drawn_as_mmsegmentation_does() -> None:
    """Each step in half of the samples, uniform: 32 of 255, half to one and a half, 18 steps of 2 degrees."""
    labels = np.zeros((8, 8), np.uint8)
    drawn = [draw(labels, (4, seed), (8, 8), Augmentation()) for seed in range(1500)]
    colours = [one.colours for one in drawn]
    for values, idle, low, high in (
        ([one.brightness for one in colours], 0.0, -32, 32),
        ([one.contrast for one in colours], 1.0, 0.5, 1.5),
        ([one.saturation for one in colours], 1.0, 0.5, 1.5),
        ([one.hue for one in colours], 0.0, -36, 36),
    ):
        used = np.sort([value for value in values if value != idle])
        assert abs(len(used) - 750) < 5 * (1500 / 4) ** 0.5  # five standard deviations
        assert (
            np.abs((used - low) / (high - low) - np.arange(1, len(used) + 1) / len(used)).max()
            < 1.95 / len(used) ** 0.5
        )
    for share in ([one.contrast_first for one in colours], [one.mirrored for one in drawn]):
        assert abs(sum(share) - 750) < 5 * (1500 / 4) ** 0.5


def test_a_thermal_channel_moves_with_the_picture_and_keeps_its_values() -> None:
    image = RANDOM.integers(0, 256, (60, 80, 4), dtype=np.uint8)
    image[..., 3] = RANDOM.integers(0, 7, (60, 80), dtype=np.uint8) * 40
    wide = type(HALF)((0.5,) * 4, (0.5,) * 4)
    for seed in range(10):
        pixels, labels = augment(image, image[..., 3], (0, seed), (60, 60), Augmentation(scale=(1, 1)), wide)
        assert torch.equal(((pixels[3] + 1) * 127.5).round().to(torch.uint8), labels)
        alone, _ = augment(image[..., :3], image[..., 3], (0, seed), (60, 60), Augmentation(scale=(1, 1)), HALF)
        assert torch.equal(pixels[:3], alone)


@pytest.mark.parametrize("changes", [{"short_side": 0}, {"long_ratio": 0.5}])
def test_impossible_sides(changes: dict[str, float]) -> None:
    from segmenter.errors import ConfigError

    with pytest.raises(ConfigError, match="wanted a pixel or more, and 1 or more"):
        Augmentation(**changes)  # type: ignore[arg-type]
