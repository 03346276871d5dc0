"""Photometric distortion of training images: what is drawn for each, and its arithmetic for a batch on any device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DEGREES = 60.0  # of hue from one primary or secondary colour to the next


@dataclass(frozen=True)
class Colours:
    """What happens to one picture's colours; the defaults leave them as they are."""

    brightness: float = 0.0  # added, of 255
    contrast: float = 1.0  # a factor
    contrast_first: bool = True  # before saturation and hue, or after them
    saturation: float = 1.0  # a factor
    hue: float = 0.0  # turned by, degrees


def distort(images: Tensor, colours: Sequence[Colours]) -> Tensor:
    """Brightness, then contrast, saturation and hue, each result kept within 0 to 255.

    images: float32 [B, C, H, W] of 0 to 255, RGB first; other channels stay as they are. colours: one a picture.
    Source: MMSegmentation's PhotoMetricDistortion, which the official code uses and which rounds down to 8 bits after
    each step; here nothing is rounded.
    """
    early = [one.contrast if one.contrast_first else 1.0 for one in colours]
    late = [1.0 if one.contrast_first else one.contrast for one in colours]
    rgb = images[:, :3]
    if any(one.brightness for one in colours):
        rgb = (rgb + _each([one.brightness for one in colours], rgb)).clamp_(0, 255)
    if any(gain != 1 for gain in early):
        rgb = (rgb * _each(early, rgb)).clamp_(0, 255)
    if any(one.saturation != 1 or one.hue for one in colours):
        factors, turns = _each([one.saturation for one in colours], rgb), [one.hue / _DEGREES for one in colours]
        rgb = _turn(rgb, factors[:, 0], _each(turns, rgb)[:, 0] if any(turns) else None)
    if any(gain != 1 for gain in late):
        rgb = (rgb * _each(late, rgb)).clamp_(0, 255)
    return rgb if images.shape[1] == 3 else torch.cat((rgb, images[:, 3:]), dim=1)


def _each(values: Sequence[float], images: Tensor) -> Tensor:
    """One number a picture: [B, 1, 1, 1]."""
    return torch.tensor(values, dtype=images.dtype).to(images.device)[:, None, None, None]


def _turn(rgb: Tensor, factor: Tensor, turn: Tensor | None) -> Tensor:
    """Saturation times `factor`, at most full, and hue turned by `turn` sixths of a circle, in HSV without leaving RGB.

    The largest channel, HSV's value, stays; the distance to the smallest is value times saturation.
    """
    red, green, blue = rgb.unbind(1)
    # twice as fast as the largest and smallest along a dimension
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    wanted = torch.minimum(chroma * factor, value)
    if turn is None:
        share = wanted.div_(chroma.clamp_(min=1e-6))[:, None]
        top = value[:, None]
        return (rgb - top).mul_(share).add_(top).clamp_(0, 255)
    inverse = chroma.clamp_(min=1e-6).reciprocal_()
    hue = torch.where(red == value, (green - blue) * inverse, (blue - red).mul_(inverse).add_(2))
    hue = torch.where((blue == value) & (red != value) & (green != value), (red - green).mul_(inverse).add_(4), hue)
    hue = hue.add_(turn).remainder_(6)
    # how far each channel lies below the value, as a share of the distance: 0 near its own hue, 1 across the circle
    below = torch.stack(
        (2 - (hue - 3).abs(), (hue - 2).abs() - 1, (hue - 4).abs() - 1),
        dim=1,
    ).clamp_(0, 1)
    # rounding alone can lead below 0
    return below.mul_(-wanted[:, None]).add_(value[:, None]).clamp_(min=0)
