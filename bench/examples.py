"""A few pictures with their truth and every engine's labels, small enough to travel inside a run's JSON."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

Palette = Sequence[tuple[int, int, int]]
LONGEST_SIDE = 320  # pixels


def photo(image: np.ndarray) -> str:
    """uint8 RGB [H, W, 3] as a data URL of a small JPEG."""
    return _data_url(_small(Image.fromarray(image), Image.Resampling.BICUBIC), "JPEG", quality=82)


def label_map(labels: np.ndarray, palette: Palette) -> str:
    """Labels [H, W] as a data URL of a small PNG in class colours; what is no class is transparent."""
    colours = np.zeros((max(len(palette), int(labels.max(initial=0))) + 1, 4), np.uint8)
    colours[: len(palette), :3] = palette
    colours[: len(palette), 3] = 255
    if len(palette) > 255:
        return _data_url(_small(Image.fromarray(colours[labels]), Image.Resampling.NEAREST), "PNG", optimize=True)
    indices = np.where(labels < len(palette), labels, 255).astype(np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette(np.pad(colours[: len(palette), :3], ((0, 256 - len(palette)), (0, 0))).tobytes())
    return _data_url(_small(picture, Image.Resampling.NEAREST), "PNG", optimize=True, transparency=255)


def _small(picture: Image.Image, how: Image.Resampling) -> Image.Image:
    scale = LONGEST_SIDE / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)), how)


def _data_url(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
