"""Training augmentation, a pure function of a seed: resize, crop, flip, photometric distortion, normalise, pad."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from segmenter.config import Preprocess
from segmenter.datasets import IGNORE
from segmenter.errors import ConfigError
from segmenter.preprocess import normalize

_ATTEMPTS = 10  # crops tried before one with too much of a class is taken
_SHARE_POINTS = 128  # points a side at which a crop's classes are counted

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the resized image


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training sample; the defaults are the paper's, and its official code's.

    At a scale of 1 the image just covers the crop. A crop of which one class has `max_class_share` or more is drawn
    again. Each of brightness (added, of 255), contrast (a factor within 1 +- it), saturation (likewise) and hue (in
    degrees) is applied with `colour_chance`; 0 turns one off.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip_chance: float = 0.5
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18.0
    colour_chance: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augmentation scale {self.scale}: wanted 0 < smallest <= largest")
        if not 0 <= self.contrast <= 1 or not 0 <= self.saturation <= 1:
            raise ConfigError(f"contrast {self.contrast}, saturation {self.saturation}: wanted 0 to 1")


PRESETS = {
    "paper": Augmentation(),
    "mild": Augmentation(
        scale=(1.0, 1.8), max_class_share=1.0, brightness=0.0, contrast=0.25, saturation=0.0, hue=0.0, colour_chance=1.0
    ),
    "flip": Augmentation(scale=(1.0, 1.0), max_class_share=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0),
    "none": Augmentation(
        scale=(1.0, 1.0), max_class_share=1.0, flip_chance=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    ),
}


def augment(
    image: np.ndarray,
    labels: np.ndarray,
    seed: Sequence[int],
    crop: tuple[int, int],
    settings: Augmentation,
    preprocess: Preprocess,
) -> tuple[Tensor, Tensor]:
    """One augmented training pair; equal arguments give equal pairs on any worker, in any order.

    image: uint8 RGB [H, W, 3]; labels: uint8 [H, W], 255 ignored; crop: (height, width) of the result.
    Returns the normalised image float32 [3, *crop] and labels uint8 [*crop], padded with 0 and 255 on the right and at
    the bottom.
    Source: the paper, section 4.2, "Data augmentation".
    """
    random = np.random.default_rng(seed)
    resized = _resized_size(labels.shape, crop, random.uniform(*settings.scale))
    box = _choose_crop(labels, resized, crop, settings.max_class_share, random)
    picture = _cut(Image.fromarray(image), resized, box, Image.Resampling.BICUBIC)
    target = np.array(_cut(Image.fromarray(labels), resized, box, Image.Resampling.NEAREST))
    pixels = np.array(_distort_colours(picture, settings, random))
    if random.random() < settings.flip_chance:
        pixels, target = pixels[:, ::-1], target[:, ::-1]
    down, right = crop[0] - target.shape[0], crop[1] - target.shape[1]
    # zeros after normalisation: what the network's own padding puts beside an image
    normal = F.pad(normalize(pixels, preprocess)[0], (0, right, 0, down))
    padded = np.pad(target, ((0, down), (0, right)), constant_values=IGNORE)
    return normal, torch.from_numpy(padded)


def _resized_size(shape: Sequence[int], crop: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of the image at a scale, 1 being where it just covers the crop; at least a pixel a side."""
    factor = scale * max(crop[0] / shape[0], crop[1] / shape[1])
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _choose_crop(
    labels: np.ndarray, resized: tuple[int, int], crop: tuple[int, int], max_share: float, random: Generator
) -> Box:
    """A random crop of the resized image; one that a class all but fills is drawn again, a few times."""
    height, width = min(crop[0], resized[0]), min(crop[1], resized[1])
    for _ in range(_ATTEMPTS):
        top = int(random.integers(resized[0] - height + 1))
        left = int(random.integers(resized[1] - width + 1))
        box = left, top, left + width, top + height
        if max_share >= 1 or (height, width) == resized or _largest_share(labels, resized, box) < max_share:
            break
    return box


def _largest_share(labels: np.ndarray, resized: tuple[int, int], box: Box) -> float:
    """Share of the commonest class among the labelled pixels of a crop; 1 where it has fewer than two classes."""
    left, top, right, bottom = _source_box(labels.shape, resized, box)
    window = labels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
    window = window[:: max(1, window.shape[0] // _SHARE_POINTS), :: max(1, window.shape[1] // _SHARE_POINTS)]
    counts = np.bincount(window.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return float(np.max(counts) / counts.sum()) if np.count_nonzero(counts) > 1 else 1.0


def _source_box(shape: Sequence[int], resized: tuple[int, int], box: Box) -> tuple[float, float, float, float]:
    """A box of the resized image in pixels of the image itself."""
    down, right = shape[0] / resized[0], shape[1] / resized[1]
    return box[0] * right, box[1] * down, min(box[2] * right, shape[1]), min(box[3] * down, shape[0])


def _cut(picture: Image.Image, resized: tuple[int, int], box: Box, resample: Image.Resampling) -> Image.Image:
    """The box of the resized picture, without resizing what lies outside."""
    if (picture.height, picture.width) == resized:
        return picture.crop(box)
    source = _source_box((picture.height, picture.width), resized, box)
    return picture.resize((box[2] - box[0], box[3] - box[1]), resample, box=source)


def _distort_colours(picture: Image.Image, settings: Augmentation, random: Generator) -> Image.Image:
    """Brightness, then contrast, saturation and hue, contrast coming first or last at random."""
    ramp = np.arange(256, dtype=np.float32)
    curve = ramp
    if _chosen(settings.brightness, settings, random):
        curve = np.clip(curve + random.uniform(-settings.brightness, settings.brightness), 0, 255)
    gain = 1.0
    if _chosen(settings.contrast, settings, random):
        gain = random.uniform(1 - settings.contrast, 1 + settings.contrast)
    contrast_first = random.random() < 0.5
    if contrast_first:
        curve = np.clip(curve * gain, 0, 255)
    picture = _through_curves(picture, curve, curve, curve)
    saturate = _chosen(settings.saturation, settings, random)
    turn = _chosen(settings.hue, settings, random)
    if saturate or turn:
        factor = random.uniform(1 - settings.saturation, 1 + settings.saturation) if saturate else 1.0
        shift = random.uniform(-settings.hue, settings.hue) * 256 / 360 if turn else 0.0
        hsv = picture.convert("HSV")
        picture = _through_curves(hsv, (ramp + shift) % 256, np.clip(ramp * factor, 0, 255), ramp).convert("RGB")
    if not contrast_first:
        curve = np.clip(ramp * gain, 0, 255)
        picture = _through_curves(picture, curve, curve, curve)
    return picture


def _chosen(strength: float, settings: Augmentation, random: Generator) -> bool:
    return strength > 0 and random.random() < settings.colour_chance


def _through_curves(picture: Image.Image, *curves: np.ndarray) -> Image.Image:
    """Each channel's values replaced by its curve, float32 [256] within 0 to 255."""
    table = [np.rint(curve).astype(int) % 256 for curve in curves]
    if all(np.array_equal(curve, np.arange(256)) for curve in table):
        return picture
    return picture.point(np.concatenate(table).tolist())
