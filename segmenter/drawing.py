"""What our pictures of numbers share: colours for values, text that fits, and where they may be written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segmenter.errors import ConfigError
from segmenter.files import require_writable
from segmenter.images import IMAGE_SUFFIXES

Colour = tuple[int, int, int]

INK: Colour = (26, 28, 32)
SOFT: Colour = (93, 99, 109)
# each even to the eye, from nothing to much
GLOW: tuple[Colour, ...] = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))
BLUES: tuple[Colour, ...] = ((255, 255, 255), (158, 197, 244), (42, 109, 198), (10, 44, 102))
REDS: tuple[Colour, ...] = ((255, 255, 255), (255, 180, 150), (219, 68, 48), (110, 10, 30))


def colours(values: np.ndarray, ramp: Sequence[Colour]) -> np.ndarray:
    """Values of 0 to 1 as colours of a ramp, interpolated between its steps: float [...] -> uint8 [..., 3]."""
    steps = np.asarray(ramp, np.float64)
    at = np.clip(values, 0.0, 1.0) * (len(steps) - 1)
    channels = [np.interp(at, np.arange(len(steps)), steps[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def require_picture_path(path: Path, option: str) -> None:
    """Find out before long work whether a picture can be written to `path`, which `option` named.

    Raises ConfigError for a name that is no picture's, OSError as `segmenter.files.require_writable` does.
    """
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"{option} {path}: wanted the name of a picture, such as {path.stem}.png")
    require_writable(path)


def font(height: int) -> ImageFont.FreeTypeFont:
    """Pillow's own typeface, `height` pixels high."""
    found = ImageFont.load_default(height)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def fitted(text: str, typeface: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its beginning as fits into `width` pixels, with dots behind it."""
    if typeface.getlength(text) <= width:
        return text
    end = next((end for end in range(len(text) - 1, 0, -1) if typeface.getlength(f"{text[:end]}...") <= width), 1)
    return f"{text[:end].rstrip()}..."


def upright(text: str, typeface: ImageFont.FreeTypeFont, colour: Colour = INK) -> Image.Image:
    """The text read from the bottom up, on nothing: an RGBA picture as small as it can be."""
    ascent, descent = typeface.getmetrics()
    picture = Image.new("RGBA", (int(typeface.getlength(text)) + 2, ascent + descent), (*colour, 0))
    ImageDraw.Draw(picture).text((1, ascent), text, fill=(*colour, 255), font=typeface, anchor="ls")
    return picture.transpose(Image.Transpose.ROTATE_90)
