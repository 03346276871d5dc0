"""Which classes are alike to a network: its class embeddings in the plane, as the paper's figure shows them.

`python -m segmenter.class_map --checkpoint FOLDER --out classes.png`
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from PIL import Image, ImageDraw

from segmenter.cli import run
from segmenter.drawing import INK, SOFT, Colour, fitted, font, require_picture_path
from segmenter.errors import ConfigError
from segmenter.images import Palette, write_image
from segmenter.option import ANY_CHECKPOINT

if TYPE_CHECKING:
    from segmenter.model import Segmenter

_SIZE = 1280, 960  # pixels
_LARGE_SIZE = 1800, 1350
_MANY = 60  # classes that want the large one
_TOP, _PAD = 76, 48
_DOT = 5
_NAME_PIXELS = 150
_STEPS, _TURNS = 60, 16  # distances and directions from its dot at which a name may stand
_APART = 4  # pixels between two names, which would read as one word
_LINE: Colour = (190, 194, 188)

Place = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Options:
    """Draw a network's class embeddings on their two directions of largest variance.

    For a mask transformer these are the embeddings it learns for the classes; for a linear decoder, the weights of each
    class. Classes that lie close are told apart by little.
    """

    checkpoint: Annotated[Path, ANY_CHECKPOINT]
    out: Path
    """PNG to write."""


def class_embeddings(model: "Segmenter") -> np.ndarray:
    """What a network knows each class by, float64 [K, C]: the mask transformer's embeddings, or a linear one's rows."""
    from segmenter.decoder import MaskDecoder

    decoder = model.decoder
    weights = decoder.cls_emb[0] if isinstance(decoder, MaskDecoder) else decoder.head.weight
    return weights.detach().double().cpu().numpy()


def project(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal components: places [K, 2] on the two directions of largest variance, and their shares of it, [2].

    embeddings: float64 [K, C]. By the singular value decomposition of the embeddings less their mean, each direction
    turned so that its largest coordinate is positive.
    Source: Strudel et al. 2021, the figure of class embeddings.
    Raises ConfigError for fewer than three classes, which always lie on a line.
    """
    if len(embeddings) < 3:
        raise ConfigError(f"{len(embeddings)} classes: always lie on a line; a map wants 3 or more")
    left, values, _ = np.linalg.svd(embeddings - embeddings.mean(0), full_matrices=False)
    places = (left * values)[:, :2]
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    largest = places[np.abs(places).argmax(0), (0, 1)]
    total = max(float((values**2).sum()), np.finfo(np.float64).tiny)
    shares = np.pad(values**2, (0, 2))[:2] / total
    return places * np.where(largest < 0, -1.0, 1.0), shares


def class_map_picture(
    places: np.ndarray, shares: np.ndarray, classes: Sequence[str], palette: Palette, title: str
) -> np.ndarray:
    """Dots in the classes' colours with their names, one scale along both axes: uint8 RGB [H, W, 3]."""
    W, H = size = _LARGE_SIZE if len(classes) > _MANY else _SIZE
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((16, 12), fitted(title, font(18), W - 32), fill=INK, font=font(18))
    said = f"Across: {shares[0]:.0%} of the variance. Up: {shares[1]:.0%}. One scale for both."
    draw.text((16, 40), said, fill=SOFT, font=font(14))
    low, high = places.min(0), places.max(0)
    room = np.array((W - 2 * _PAD - _NAME_PIXELS, H - _TOP - 2 * _PAD))
    scale = (room / np.maximum(high - low, np.finfo(np.float64).tiny)).min()
    middle = np.array((W / 2, _TOP + (H - _TOP) / 2))
    dots = middle + (places - (low + high) / 2) * scale * (1, -1)
    zero = middle - (low + high) / 2 * scale * (1, -1)
    draw.line((zero[0], _TOP, zero[0], H), fill=(236, 237, 234))
    draw.line((0, zero[1], W, zero[1]), fill=(236, 237, 234))
    typeface = font(16)
    names = [fitted(name, typeface, _NAME_PIXELS) for name in classes]
    taken: list[Place] = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in dots]
    for (x, y), name in zip(dots, names, strict=True):
        place = _free_place(x, y, typeface.getlength(name), sum(typeface.getmetrics()), taken, size)
        taken.append(place)
        _leader(draw, x, y, place)
    for (x, y), colour, name, place in zip(dots, palette, names, taken[len(dots) :], strict=True):
        draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=tuple(colour), outline=INK)
        draw.text(place[:2], name, fill=INK, font=typeface, stroke_width=2, stroke_fill="white")
    return np.array(picture)


def _free_place(x: float, y: float, wide: float, tall: float, taken: Sequence[Place], size: tuple[int, int]) -> Place:
    """Where a name stands nearest to its dot with nothing under it; beside the dot when no place is free.

    wide, tall: of the name; size: of the picture; all in pixels.
    """
    steps, turns = np.meshgrid(np.arange(_STEPS), np.arange(_TURNS), indexing="ij")
    reach, angle = _DOT + 3 + 7 * steps.ravel(), 2 * math.pi * turns.ravel() / _TURNS
    # the name's nearest side or corner lies on a circle round the dot
    right, down = np.cos(angle), np.sin(angle)
    left = x + reach * right + np.select([right > 0.3, right < -0.3], [0, -wide], -wide / 2)
    top = y + reach * down + np.select([abs(down) < 0.3, down > 0], [-tall / 2, 0], -tall)
    inside = (left >= 4) & (left + wide <= size[0] - 4) & (top >= _TOP - 10) & (top + tall <= size[1] - 4)
    others = np.asarray(taken).T
    beside = (left[:, None] - _APART < others[2]) & (others[0] - _APART < left[:, None] + wide)
    covers = beside & (top[:, None] < others[3]) & (others[1] < top[:, None] + tall)
    # the first of them, which is the nearest; the very first when none is free
    best = int(np.argmax(inside & ~covers.any(1)))
    return float(left[best]), float(top[best]), float(left[best]) + wide, float(top[best]) + tall


def _leader(draw: ImageDraw.ImageDraw, x: float, y: float, place: Place) -> None:
    """A line from a dot to its name where that stands away from it."""
    end = min(max(x, place[0]), place[2]), min(max(y, place[1]), place[3])
    if math.dist((x, y), end) > 3 * _DOT:
        draw.line((x, y, *end), fill=_LINE)


def class_map(options: Options) -> int:
    from segmenter.checkpoint import load_model

    require_picture_path(options.out, "--out")
    model = load_model(options.checkpoint, "cpu")
    config = model.config
    places, shares = project(class_embeddings(model))
    title = f"{config.name}: {config.num_classes} classes"
    write_image(options.out, class_map_picture(places, shares, config.classes, config.palette, title))
    print(f"{config.num_classes} classes drawn into {options.out}, {shares.sum():.0%} of their variance in the plane")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(class_map, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
