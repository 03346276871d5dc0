"""Procedural pictures of textured shapes: a dataset to train, test and demonstrate on that needs no files.

Seven kinds of figure, each with its own outline and texture, overlap on a coloured ground under shadows, a lighting
gradient and noise. Seven in ten also show their kind's hue, without which a small network takes long to learn anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from segmenter.datasets.sample import IGNORE, SPLITS, Sample, require_index

SIZE = 128  # pixels, both sides
LENGTHS = {"train": 4096, "val": 200}
HUE_SHARE = 0.7
_TEXTURE_PERIOD = 5.0  # pixels
_SHADOW_OFFSET = 3  # pixels, right and down
_REACH = 1.45  # no outline extends further from its centre, in radii


@dataclass(frozen=True)
class Figure:
    """A class of shapes. Its functions take coordinates u, v in radii from the centre, along the figure's own axes."""

    name: str
    colour: tuple[int, int, int]
    hue: float
    outline: Callable[[np.ndarray, np.ndarray], np.ndarray]  # u, v -> inside, bool
    # u, v, spatial frequency in radians a radius, random generator -> mix of the two colours, 0 to 1
    texture: Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray]


def _wave(values: np.ndarray, sharpness: float = 3.0) -> np.ndarray:
    """A wave of -1 to 1 as a mix of 0 to 1, with the flanks steepened."""
    return np.clip(0.5 + 0.5 * sharpness * values, 0.0, 1.0)


FIGURES = (
    Figure(
        "disc",
        (230, 25, 75),
        0.02,
        outline=lambda u, v: u * u + v * v < 1,
        texture=lambda u, v, f, random: random.random(u.shape, np.float32) < 0.35,
    ),
    Figure(
        "ring",
        (255, 225, 25),
        0.14,
        outline=lambda u, v: np.abs(u * u + v * v - 0.625) < 0.375,
        texture=lambda u, v, f, random: _wave(np.cos(10 * np.arctan2(v, u))),
    ),
    Figure(
        "square",
        (0, 130, 200),
        0.30,
        outline=lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.85,
        texture=lambda u, v, f, random: _wave(np.sin(f * u)),
    ),
    Figure(
        "triangle",
        (245, 130, 48),
        0.45,
        outline=lambda u, v: (v > -0.6) & (v + 1.75 * np.abs(u) < 1.1),
        texture=lambda u, v, f, random: _wave(np.sin(0.8 * f * u) * np.sin(0.8 * f * v), 4.0),
    ),
    Figure(
        "cross",
        (60, 180, 75),
        0.58,
        outline=lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.33) & (np.maximum(np.abs(u), np.abs(v)) < 1),
        texture=lambda u, v, f, random: np.cos(0.8 * f * u) + np.cos(0.8 * f * v) > 0.9,
    ),
    Figure(
        "ellipse",
        (145, 30, 180),
        0.72,
        outline=lambda u, v: (u / 1.15) ** 2 + (v / 0.6) ** 2 < 1,
        texture=lambda u, v, f, random: _wave(np.cos(f * np.hypot(u, v)), 1.0),
    ),
    Figure(
        "bar",
        (70, 240, 240),
        0.88,
        outline=lambda u, v: (np.abs(u) < 1.35) & (np.abs(v) < 0.33),
        texture=lambda u, v, f, random: np.clip(0.5 + 0.4 * u, 0.0, 1.0),
    ),
)
CLASSES = ("background", *(figure.name for figure in FIGURES))
PALETTE = ((40, 40, 40), *(figure.colour for figure in FIGURES))


class Shapes:
    """The `shapes` dataset: image i of a split, 128x128, depends on nothing but the split and i.

    split: 'train' or 'val', which never share an image; length: samples, 4096 and 200 when None.
    """

    classes, palette, ignore, channels = CLASSES, PALETTE, IGNORE, 3

    def __init__(self, split: str, length: int | None = None) -> None:
        self.split, self.length = split, LENGTHS[split] if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        require_index(index, self.length)
        image, labels = scene(np.random.default_rng((index, SPLITS.index(self.split))))
        return Sample(image, labels, f"shapes/{self.split}/{index}")


def scene(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture, uint8 RGB [128, 128, 3], and its labels, uint8 [128, 128]."""
    image, labels = _ground(random), np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(random.integers(5, 10)):
        label = int(random.integers(1, len(CLASSES)))
        _draw(image, labels, label, random)
    image *= _lighting(random)[..., None]
    image += 0.04 * random.standard_normal((SIZE, SIZE, 1), np.float32)
    image += 0.02 * random.standard_normal((SIZE, SIZE, 3), np.float32)
    return (np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8), labels


def _draw(image: np.ndarray, labels: np.ndarray, label: int, random: np.random.Generator) -> None:
    """Paint one figure of a class over image and labels, at a random place, angle and size."""
    figure = FIGURES[label - 1]
    radius = random.uniform(0.09, 0.22) * SIZE
    centre_x, centre_y = random.uniform(0.05, 0.95, 2) * SIZE
    angle = random.uniform(0.0, 2.0 * np.pi)
    rows, columns = _span(centre_y, radius), _span(centre_x, radius)
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(centre_x)) / np.float32(radius)
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) - np.float32(centre_y))[:, None] / np.float32(radius)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = x * cos + y * sin, y * cos - x * sin
    inside = figure.outline(u, v)
    first, second = _colours(figure, random)
    frequency = 2.0 * np.pi * radius / (random.uniform(0.8, 1.25) * _TEXTURE_PERIOD)
    mix = figure.texture(u[inside], v[inside], frequency, random).astype(np.float32)
    patch = image[rows, columns]
    patch[_SHADOW_OFFSET:, _SHADOW_OFFSET:][inside[:-_SHADOW_OFFSET, :-_SHADOW_OFFSET]] *= np.float32(0.75)
    patch[inside] = first + mix[:, None] * (second - first)
    labels[rows, columns][inside] = label


def _span(centre: float, radius: float) -> slice:
    """The pixels along a side that a figure can touch."""
    return slice(max(int(centre - _REACH * radius), 0), min(int(centre + _REACH * radius) + 2, SIZE))


def _colours(figure: Figure, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A figure's colour, mostly of its class's hue, and a much darker or much lighter one."""
    hue = figure.hue + random.normal(0.0, 0.03) if random.random() < HUE_SHARE else random.random()
    first = _rgb(hue, random.uniform(0.45, 0.95), random.uniform(0.55, 1.0))
    share = np.float32(random.uniform(0.15, 0.5))
    return first, first * share if random.random() < 0.5 else 1 - (1 - first) * share


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV, each 0 to 1 and the hue cyclic, to float32 RGB [3]."""
    distance = np.abs((hue * 6.0 - np.array((0.0, 2.0, 4.0)) + 3.0) % 6.0 - 3.0)
    return (value * (1.0 - saturation * np.clip(distance - 1.0, 0.0, 1.0))).astype(np.float32)


def _ground(random: np.random.Generator) -> np.ndarray:
    """Two muted colours mixed by clouds and a vertical gradient, float32 [128, 128, 3]."""
    first, second = (_rgb(random.random(), random.uniform(0.1, 0.6), random.uniform(0.3, 0.9)) for _ in range(2))
    weights = _cloud_weights()
    clouds = weights @ random.standard_normal((weights.shape[1],) * 2, np.float32) @ weights.T
    mix = np.clip(0.5 + 0.4 * clouds + 0.5 * _ramp()[:, None], 0.0, 1.0)[..., None]
    return first + mix * (second - first)


def _lighting(random: np.random.Generator) -> np.ndarray:
    """Brightness over the picture: an exposure and a gradient in any direction, float32 [128, 128]."""
    across, down = random.uniform(-0.7, 0.7, 2).astype(np.float32)
    return np.float32(random.uniform(0.75, 1.15)) * (1 + across * _ramp() + down * _ramp()[:, None])


@lru_cache(maxsize=1)
def _ramp() -> np.ndarray:
    """-0.5 to 0.5 along a side, float32 [128]."""
    return np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)


@lru_cache(maxsize=1)
def _cloud_weights(points: int = 6) -> np.ndarray:
    """Linear interpolation from `points` values to a side, float32 [128, points]."""
    where = np.linspace(0.0, points - 1.0, SIZE, dtype=np.float32)[:, None]
    return np.clip(1.0 - np.abs(where - np.arange(points, dtype=np.float32)), 0.0, 1.0)
