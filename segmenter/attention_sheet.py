"""Attention maps over a dimmed image, layer by layer and head by head, as one picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from segmenter.drawing import GLOW, INK, SOFT, Colour, colours, fitted, font

_GAP = 8
_CAPTION = 20
_KEY = 180, 12  # pixels
_MARK: Colour = (0, 230, 118)


def attention_sheet(
    image: np.ndarray,
    maps: np.ndarray,
    patch_size: int,
    layers: Sequence[int],
    title: str,
    box: tuple[int, int, int, int] | None,
    width: int,
) -> np.ndarray:
    """The image with its marked patch, and below it a row a layer: the mean of the heads, then each head.

    image: uint8 RGB [H, W, 3]; maps: attention float [layers, A, h, w] of its patches; box: left, top, right, bottom of
    the patch that looks, None for a token that is none; width: pixels across each picture. Every picture goes from no
    attention to its own largest, which it says. Returns uint8 RGB.
    """
    H, W = image.shape[:2]
    size = width, max(1, round(H * width / W))
    heads = maps.shape[1]
    columns = heads + 1
    # the mean stands apart
    left_of = [_GAP + column * (size[0] + _GAP) + (2 * _GAP if column else 0) for column in range(columns)]
    row_height = size[1] + _CAPTION + _GAP
    top = _GAP + max(size[1], 74) + 2 * _GAP
    sheet = Image.new(
        "RGB", (max(left_of[-1] + size[0] + _GAP, 2 * size[0] + 3 * _GAP), top + len(maps) * row_height), "white"
    )
    draw = ImageDraw.Draw(sheet)
    sheet.paste(_marked(image, box, size), (_GAP, _GAP))
    _heading(draw, sheet, _GAP + size[0] + 2 * _GAP, title)
    small = font(13)
    for row, (layer, of_heads) in enumerate(zip(layers, maps, strict=True)):
        y = top + row * row_height
        for column, weights in enumerate((of_heads.mean(0), *of_heads)):
            x = left_of[column]
            sheet.paste(Image.fromarray(attention_overlay(image, weights, patch_size)).resize(size), (x, y))
            name = f"layer {layer}, mean" if column == 0 else f"head {column - 1}"
            caption = f"{name}, up to {weights.max():.2g}"
            draw.text((x, y + size[1] + 3), fitted(caption, small, size[0]), fill=SOFT, font=small)
    return np.array(sheet)


def attention_overlay(image: np.ndarray, weights: np.ndarray, patch_size: int) -> np.ndarray:
    """One map over the image in dimmed grey, patch by patch: uint8 RGB [H, W, 3].

    weights: float [h, w], of patches that cover the image, which may end within the last.
    """
    H, W = image.shape[:2]
    share = weights / max(float(weights.max()), np.finfo(np.float32).tiny)
    glow = np.kron(share, np.ones((patch_size, patch_size)))[:H, :W, None]
    grey = 20 + 0.5 * np.array(Image.fromarray(image).convert("L"), np.float64)[..., None]
    # where all is looked at the image still shows
    strength = 0.85 * np.sqrt(glow)
    return np.rint(grey * (1 - strength) + colours(glow[..., 0], GLOW) * strength).astype(np.uint8)


def _marked(image: np.ndarray, box: tuple[int, int, int, int] | None, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(image).resize(size)
    if box is not None:
        scale = size[0] / image.shape[1]
        left, top, right, bottom = (round(edge * scale) for edge in box)
        frame = max(0, left - 2), max(0, top - 2), min(size[0] - 1, right + 1), min(size[1] - 1, bottom + 1)
        ImageDraw.Draw(picture).rectangle(frame, outline=_MARK, width=2)
    return picture


def _heading(draw: ImageDraw.ImageDraw, sheet: Image.Image, x: int, title: str) -> None:
    room = sheet.width - x - _GAP
    draw.text((x, _GAP), fitted(title, font(16), room), fill=INK, font=font(16))
    width = min(_KEY[0], room)
    ramp = colours(np.linspace(0, 1, width)[None].repeat(_KEY[1], 0), GLOW)
    sheet.paste(Image.fromarray(ramp), (x, _GAP + 30))
    draw.text((x, _GAP + 46), "0", fill=SOFT, font=font(13))
    draw.text((x + width, _GAP + 46), "each one's largest", fill=SOFT, font=font(13), anchor="ra")
