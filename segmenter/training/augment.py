"""Training augmentation, a pure function of a seed: resize, crop, flip, photometric distortion, normalise, pad.

What happens to a sample is drawn first, from its labels and a seed (`draw`), and then done: to one sample on the CPU
here, or to a batch on any device in `segmenter.training.batch_augment`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from segmenter.config import Preprocess
from segmenter.datasets import IGNORE
from segmenter.errors import ConfigError
from segmenter.images import nearest
from segmenter.preprocess import normalize_planar
from segmenter.training.colour import Colours, distort
from segmenter.training.options import AugmentOptions
from segmenter.window import scaled_size

_ATTEMPTS = 10  # crops drawn again before one with too much of a class is taken

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the resized image


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training sample; the defaults are the paper's, and its official code's.

    At a scale of 1 the shorter side has `short_side` pixels, or where that is None the image just covers the crop; the
    longer side then has at most `long_ratio` times that. A crop of which one class has `max_class_share` or more is
    drawn again. Each of brightness (added, of 255), contrast (a factor within 1 +- it), saturation (likewise) and hue
    (in degrees) is applied with `colour_chance`; 0 turns one off.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    short_side: int | None = None
    long_ratio: float = 4.0
    max_class_share: float = 0.75
    flip_chance: float = 0.5
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 36.0  # MMSegmentation's 18 are steps of 2 degrees
    colour_chance: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augmentation scale {self.scale}: wanted 0 < smallest <= largest")
        if not 0 <= self.contrast <= 1 or not 0 <= self.saturation <= 1:
            raise ConfigError(f"contrast {self.contrast}, saturation {self.saturation}: wanted 0 to 1")
        if (self.short_side is not None and self.short_side < 1) or self.long_ratio < 1:
            raise ConfigError(
                f"short side {self.short_side}, long ratio {self.long_ratio:g}: wanted a pixel or more, and 1 or more"
            )


_FLIP = Augmentation(scale=(1.0, 1.0), max_class_share=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
PRESETS = {
    "paper": Augmentation(),
    "mild": replace(_FLIP, scale=(1.0, 1.8), contrast=0.25, colour_chance=1.0),
    "flip": _FLIP,
    "none": replace(_FLIP, flip_chance=0.0),
}


def augmentation_of(options: AugmentOptions) -> Augmentation:
    """One of `PRESETS`, with what the options give in place of its own."""
    given = {name: getattr(options, name) for name in ("scale", "short_side", "long_ratio")}
    return replace(PRESETS[options.augment], **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Draw:
    """What was drawn for one sample: its size (height, width) when resized, the part of that, and the rest."""

    resized: tuple[int, int]
    box: Box
    mirrored: bool
    colours: Colours


def draw(labels: np.ndarray, seed: Sequence[int], crop: tuple[int, int], settings: Augmentation) -> Draw:
    """What happens to the sample of these labels, uint8 [H, W], with this seed; the crop depends on the labels."""
    random = np.random.default_rng(seed)
    resized = _resized_size(labels.shape, crop, random.uniform(*settings.scale), settings)
    box = _choose_crop(labels, resized, crop, settings.max_class_share, random)
    mirrored = bool(random.random() < settings.flip_chance)
    return Draw(resized, box, mirrored, _draw_colours(settings, random))


def augment(
    image: np.ndarray,
    labels: np.ndarray,
    seed: Sequence[int],
    crop: tuple[int, int],
    settings: Augmentation,
    preprocess: Preprocess,
) -> tuple[Tensor, Tensor]:
    """One augmented training pair; equal arguments give equal pairs on any worker, in any order.

    image: uint8 [H, W, C], RGB first; labels: uint8 [H, W], 255 ignored; crop: (height, width) of the result.
    Returns the normalised image float32 [C, *crop] and labels uint8 [*crop], padded with 0 and 255 on the right and at
    the bottom.
    Source: the paper, section 4.2, "Data augmentation"; MMSegmentation's transforms, which the official code uses.
    """
    drawn = draw(labels, seed, crop, settings)
    pixels, target = cut_image(image, drawn), cut_labels(labels, drawn.resized, drawn.box)
    if drawn.mirrored:
        pixels, target = pixels[:, ::-1], target[:, ::-1]
    normal = normalize_planar(distort(to_planar(pixels), (drawn.colours,)), preprocess)
    return pad_to(crop, normal[0], target)


def cut_image(image: np.ndarray, drawn: Draw) -> np.ndarray:
    """The drawn part of a resized image, uint8 [H, W, C] -> [h, w, C], without resizing what lies outside.

    Bilinear without antialiasing, as the official code resizes (OpenCV's INTER_LINEAR); no channel mixes with another.
    """
    left, top, right, bottom = drawn.box
    if image.shape[0] > drawn.resized[0] or image.shape[1] > drawn.resized[1]:
        # Pillow would antialias; PyTorch shrinks the whole sooner than Pillow enlarges a part
        batch = torch.from_numpy(image).permute(2, 0, 1)[None]
        shrunk = F.interpolate(batch, drawn.resized, mode="bilinear", align_corners=False)
        return shrunk[0, :, top:bottom, left:right].permute(1, 2, 0).numpy()
    if image.shape[:2] == drawn.resized:
        return image[top:bottom, left:right]
    parts = (image[..., :3], *(image[..., index] for index in range(3, image.shape[2])))
    cut = [_cut(Image.fromarray(np.ascontiguousarray(part)), drawn.resized, drawn.box) for part in parts]
    return cut[0] if len(cut) == 1 else np.dstack(cut)


def cut_labels(labels: np.ndarray, resized: tuple[int, int], box: Box) -> np.ndarray:
    """The box of resized labels, uint8 [H, W] -> [h, w]: the label at the place of each pixel's centre.

    OpenCV's INTER_NEAREST, which the official code uses, takes it at each pixel's corner, up to half a pixel beside
    where the image was sampled.
    """
    left, top, right, bottom = box
    rows = nearest(np.arange(top, bottom), labels.shape[0], resized[0])
    columns = nearest(np.arange(left, right), labels.shape[1], resized[1])
    return labels[rows].take(columns, axis=1)


def to_planar(pixels: np.ndarray) -> Tensor:
    """uint8 [h, w, C] -> float32 [1, C, h, w]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32))[None]


def pad_to(crop: tuple[int, int], normal: Tensor, target: np.ndarray) -> tuple[Tensor, Tensor]:
    """A normalised image [C, h, w] and labels [h, w] filled up to the crop with 0, as the network pads, and 255."""
    labels = torch.from_numpy(target.copy())  # mirrored ones have a negative stride, which PyTorch does not take
    down, right = crop[0] - target.shape[0], crop[1] - target.shape[1]
    if not (down or right):
        return normal, labels
    sides = (0, right, 0, down)
    return F.pad(normal, sides), F.pad(labels, sides, value=IGNORE)


def _resized_size(shape: Sequence[int], crop: tuple[int, int], scale: float, settings: Augmentation) -> tuple[int, int]:
    """(height, width) of the image at a scale; at least a pixel a side."""
    H, W = shape[:2]
    short = min(crop) if settings.short_side is None else settings.short_side
    # one where the image just covers the crop; for a square one that is a short side of the crop's pixels
    whole = max(crop[0] / H, crop[1] / W) if settings.short_side is None else short / min(H, W)
    factor = int(short * scale) / short * whole
    factor = min(factor, int(settings.long_ratio * short * scale) / max(H, W))
    return scaled_size((H, W), factor)


def _choose_crop(
    labels: np.ndarray, resized: tuple[int, int], crop: tuple[int, int], max_share: float, random: Generator
) -> Box:
    """A random crop of the resized image; one that a class all but fills is drawn again, a few times."""
    height, width = min(crop[0], resized[0]), min(crop[1], resized[1])
    for attempt in range(_ATTEMPTS + 1):
        top = int(random.integers(resized[0] - height + 1))
        left = int(random.integers(resized[1] - width + 1))
        box = left, top, left + width, top + height
        if max_share >= 1 or (height, width) == resized or attempt == _ATTEMPTS:
            break
        if _largest_share(cut_labels(labels, resized, box)) < max_share:
            break
    return box


def _largest_share(labels: np.ndarray) -> float:
    """Share of the commonest class among the labelled pixels of a crop; 1 where it has fewer than two classes."""
    # Pillow counts bytes many times faster than NumPy
    counts = np.array(Image.fromarray(labels).histogram()[:IGNORE])
    return float(np.max(counts) / counts.sum()) if np.count_nonzero(counts) > 1 else 1.0


def _cut(picture: Image.Image, resized: tuple[int, int], box: Box) -> np.ndarray:
    """The box of an enlarged picture of one band or three."""
    down, right = picture.height / resized[0], picture.width / resized[1]
    source = box[0] * right, box[1] * down, min(box[2] * right, picture.width), min(box[3] * down, picture.height)
    size = box[2] - box[0], box[3] - box[1]
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=source))


def _draw_colours(settings: Augmentation, random: Generator) -> Colours:
    def chosen(strength: float) -> bool:
        return strength > 0 and random.random() < settings.colour_chance

    def within(strength: float, middle: float) -> float:
        return float(random.uniform(middle - strength, middle + strength)) if chosen(strength) else middle

    return Colours(
        brightness=within(settings.brightness, 0.0),
        contrast=within(settings.contrast, 1.0),
        contrast_first=bool(random.random() < 0.5),
        saturation=within(settings.saturation, 1.0),
        hue=within(settings.hue, 0.0),
    )
