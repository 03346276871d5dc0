"""Augmentation of a whole batch on any device: what `augment` does to each sample, to within rounding of the resize."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segmenter.config import Preprocess
from segmenter.datasets import IGNORE
from segmenter.images import nearest
from segmenter.preprocess import normalize_planar
from segmenter.training.augment import Draw
from segmenter.training.colour import distort


class Raw(NamedTuple):
    """Samples as they were read, and what was drawn for each.

    images: uint8 [B, H, W, C] and labels: uint8 [B, H, W], each filled up to the largest of the batch; sizes: (height,
    width) of each within.
    """

    images: Tensor
    labels: Tensor
    sizes: list[tuple[int, int]]
    draws: list[Draw]


class _Side(NamedTuple):
    """Where the pixels of one side of each crop come from, [B, places].

    low, high: the two pixels to mix, by the weight of the second; at: the one a label is taken of; inside: not padding.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    at: Tensor
    inside: Tensor


def stack_raw(samples: Sequence[tuple[np.ndarray, np.ndarray, Draw]]) -> Raw:
    """A batch of images, uint8 [H, W, C], labels, uint8 [H, W], and draws."""
    sizes = [labels.shape for _, labels, _ in samples]
    H, W = (max(sides) for sides in zip(*sizes, strict=True))
    images = torch.zeros(len(samples), H, W, samples[0][0].shape[2], dtype=torch.uint8)
    labels = torch.zeros(len(samples), H, W, dtype=torch.uint8)
    for index, (image, mask, _) in enumerate(samples):
        images[index, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(image)
        labels[index, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
    return Raw(images, labels, [(height, width) for height, width in sizes], [drawn for _, _, drawn in samples])


def augment_batch(
    raw: Raw, crop: tuple[int, int], preprocess: Preprocess, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised images float32 [B, C, *crop] and labels uint8 [B, *crop], computed on `device`."""
    images, labels = raw.images.to(device, non_blocking=True), raw.labels.to(device, non_blocking=True)
    rows = _side(raw, 0, crop[0], device)
    columns = _side(raw, 1, crop[1], device)
    one = torch.arange(len(raw.draws), device=device)[:, None, None]

    def pixels(y: Tensor, x: Tensor) -> Tensor:
        return images[one, y[:, :, None], x[:, None, :]].float()

    across = columns.weight[:, None, :, None]
    top = torch.lerp(pixels(rows.low, columns.low), pixels(rows.low, columns.high), across)
    bottom = torch.lerp(pixels(rows.high, columns.low), pixels(rows.high, columns.high), across)
    # to whole levels, as on the CPU: what a resized 8-bit picture holds
    resized = torch.lerp(top, bottom, rows.weight[:, :, None, None]).round_().permute(0, 3, 1, 2).contiguous()
    normal = normalize_planar(distort(resized, [drawn.colours for drawn in raw.draws]), preprocess)
    inside = rows.inside[:, :, None] & columns.inside[:, None, :]
    target = labels[one, rows.at[:, :, None], columns.at[:, None, :]]
    return normal * inside[:, None], torch.where(inside, target, IGNORE)


def _side(raw: Raw, side: int, places: int, device: torch.device) -> _Side:
    """Rows (side 0) or columns (side 1) of every crop, mirrored where drawn so."""
    shape = len(raw.draws), places
    low, high, at = (np.zeros(shape, np.int64) for _ in range(3))
    weight, inside = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for index, (drawn, size) in enumerate(zip(raw.draws, raw.sizes, strict=True)):
        length, resized = size[side], drawn.resized[side]
        pixels: np.ndarray = np.arange(drawn.box[1 - side], drawn.box[3 - side])
        if side == 1 and drawn.mirrored:
            pixels = pixels[::-1]
        count = len(pixels)
        source = np.clip((pixels + 0.5) * (length / resized) - 0.5, 0, length - 1)
        low[index, :count] = source
        high[index, :count] = np.minimum(low[index, :count] + 1, length - 1)
        weight[index, :count] = source - low[index, :count]
        at[index, :count] = nearest(pixels, length, resized)
        inside[index, :count] = True
    return _Side(*(torch.from_numpy(part).to(device) for part in (low, high, weight, at, inside)))
