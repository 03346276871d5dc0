"""From uint8 RGB (and any channels after it) to the network's input: what every runtime obeys, in PyTorch."""

import numpy as np
import torch
from torch import Tensor

from segmenter.config import Preprocess


def normalize(images: np.ndarray, spec: Preprocess) -> Tensor:
    """uint8 RGB [B, H, W, 3] or [H, W, 3] -> float32 [B, 3, H, W], `(x / 255 - mean) / std`; or more channels.

    Computed as `x * scale + shift` in float32 with `scale = 1 / (255 std)` and `shift = -mean / std` rounded to float32
    once, so that every runtime can repeat it bit for bit.
    Raises ValueError for another dtype or shape.
    """
    if images.ndim == 3:
        images = images[None]
    channels = len(spec.mean)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
        raise ValueError(f"images {images.dtype} {images.shape}: wanted uint8 [B, H, W, {channels}]")
    planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    return normalize_planar(torch.from_numpy(planar), spec)


def normalize_planar(images: Tensor, spec: Preprocess) -> Tensor:
    """`normalize` of what is planar and floating point already, float32 [B, C, H, W] of 0 to 255, on any device."""
    scale, shift = (torch.from_numpy(values).to(images.device)[:, None, None] for values in affine(spec))
    return images * scale + shift


def affine(spec: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """`scale` and `shift`, float32 [C], of the preprocessing written as `x * scale + shift`."""
    mean, std = np.asarray(spec.mean, np.float64), np.asarray(spec.std, np.float64)
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)
