"""From uint8 RGB to the network's input: the one specification every runtime obeys, in PyTorch."""

import numpy as np
import torch
from torch import Tensor

from segmenter.config import Preprocess


def normalize(images: np.ndarray, spec: Preprocess) -> Tensor:
    """uint8 RGB [B, H, W, 3] or [H, W, 3] -> float32 [B, 3, H, W], `(x / 255 - mean) / std`.

    Computed as `x * scale + shift` in float32 with `scale = 1 / (255 std)` and `shift = -mean / std` rounded to float32
    once, so that every runtime can repeat it bit for bit.
    Raises ValueError for another dtype or shape.
    """
    if images.ndim == 3:
        images = images[None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images {images.dtype} {images.shape}: wanted uint8 [B, H, W, 3]")
    scale, shift = affine(spec)
    planar = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32))
    return planar * torch.from_numpy(scale)[:, None, None] + torch.from_numpy(shift)[:, None, None]


def affine(spec: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """`scale` and `shift`, float32 [3], of the preprocessing written as `x * scale + shift`."""
    mean, std = np.asarray(spec.mean, np.float64), np.asarray(spec.std, np.float64)
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)
