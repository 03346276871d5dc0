"""A confusion matrix as a picture that can be read for eleven classes and for a hundred and fifty."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from segmenter.drawing import BLUES, INK, REDS, SOFT, Colour, colours, fitted, font, upright

_CELL_PIXELS = 13, 46  # the smallest a name fits beside, the largest
_MATRIX_PIXELS = 620  # what a small matrix grows to
_NUMBERED_CELL = 30  # pixels a cell needs for a number
_NAME_PIXELS = 150
_TITLE_PIXELS = 64
_KEY_PIXELS = 56
_ABSENT: Colour = (232, 233, 230)
_LINE: Colour = (210, 212, 207)
_BLOCK = 10  # classes between two lines to count by
_TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


def confusion_picture(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Share of each true class's pixels (a row) that got each label (a column), uint8 RGB [H, W, 3].

    matrix: integer [K, K], `matrix[t, p]` pixels of class t labelled p. Right ones are blue, wrong ones red, by the
    square root of the share, for most mistakes are small; the row of a class the truth has not is grey. Cells large
    enough also say the share in percent.
    """
    K = len(classes)
    cell = min(max(_MATRIX_PIXELS // K, _CELL_PIXELS[0]), _CELL_PIXELS[1])
    typeface = font(min(cell - 2, 15))
    names = [fitted(name, typeface, _NAME_PIXELS) for name in classes]
    margin = int(max(typeface.getlength(name) for name in names)) + 12
    twice = cell * K > 2 * _MATRIX_PIXELS  # too far from one side: names on both
    side = cell * K
    left, top = margin, _TITLE_PIXELS + margin
    right = margin if twice else 16
    width = max(left + side + right, 460)
    height = top + side + (margin if twice else 16) + _KEY_PIXELS
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((12, 10), "Rows: the true class. Columns: the label it got.", fill=INK, font=font(16))
    draw.text((12, 34), "Share of the row's pixels; grey: not in the truth.", fill=SOFT, font=font(14))
    shares = _row_shares(matrix)
    picture.paste(Image.fromarray(np.kron(_cells(shares), np.ones((cell, cell, 1), np.uint8))), (left, top))
    for index in range(K + 1):
        if cell >= _NUMBERED_CELL or index % _BLOCK == 0 or index == K:
            at = index * cell
            draw.line((left + at, top, left + at, top + side), fill=_LINE)
            draw.line((left, top + at, left + side, top + at), fill=_LINE)
    for index, name in enumerate(names):
        middle = index * cell + cell // 2
        draw.text((left - 6, top + middle), name, fill=INK, font=typeface, anchor="rm")
        word = upright(name, typeface)
        picture.paste(word, (left + middle - word.width // 2, top - 6 - word.height), word)
        if twice:
            draw.text((left + side + 6, top + middle), name, fill=INK, font=typeface, anchor="lm")
            picture.paste(word, (left + middle - word.width // 2, top + side + 6), word)
    if cell >= _NUMBERED_CELL:
        _numbers(draw, shares, left, top, cell)
    _key(draw, 12, height - _KEY_PIXELS + 6)
    return np.array(picture)


def _row_shares(matrix: np.ndarray) -> np.ndarray:
    """Float64 [K, K]; NaN in the rows without pixels."""
    pixels = matrix.sum(1, keepdims=True)
    return np.divide(matrix, pixels, out=np.full(matrix.shape, np.nan), where=pixels > 0)


def _cells(shares: np.ndarray) -> np.ndarray:
    """Colours of the cells, uint8 [K, K, 3]."""
    depth = np.sqrt(np.nan_to_num(shares))
    right = np.eye(len(shares), dtype=bool)[..., None]
    cells = np.where(right, colours(depth, BLUES), colours(depth, REDS))
    cells[np.isnan(shares)] = _ABSENT
    return cells


def _numbers(draw: ImageDraw.ImageDraw, shares: np.ndarray, left: int, top: int, cell: int) -> None:
    small = font(12)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            middle = left + column * cell + cell // 2 + 1, top + row * cell + cell // 2
            fill = "white" if share > 0.25 else INK
            draw.text(middle, f"{100 * share:.0f}", fill=fill, font=small, anchor="mm")


def _key(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """What the colours mean: both ramps with a few shares below them."""
    small, step = font(12), 46
    for row, ramp in enumerate((BLUES, REDS)):
        for index, tick in enumerate(_TICKS):
            box = (x + index * step, y + row * 14, x + (index + 1) * step - 3, y + row * 14 + 11)
            fill = tuple(int(channel) for channel in colours(np.sqrt(np.float64(tick)), ramp))
            draw.rectangle(box, fill=fill, outline=_LINE)
        draw.text(
            (x + len(_TICKS) * step + 4, y + row * 14 + 6), ("right", "wrong")[row], fill=INK, font=small, anchor="lm"
        )
    for index, tick in enumerate(_TICKS):
        draw.text((x + index * step + step // 2, y + 30), f"{100 * tick:g} %", fill=SOFT, font=small, anchor="mt")
