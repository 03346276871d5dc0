"""The training loss: cross-entropy of upsampled class masks, ignored pixels left out, classes weighted if asked."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmenter.errors import ConfigError


def segmentation_loss(
    masks: Tensor,
    labels: Tensor,
    patch_size: int,
    stride: int = 1,
    weights: Tensor | None = None,
    ignore: int = 255,
    count: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over labelled pixels; 0, still differentiable, where there are none.

    masks: [B, K, h, w] on the patch grid of the padded image; labels: integer [B, H, W] of the image before padding;
    weights: [K]; count: what to divide by where these images are part of a batch, the sum of its parts' `labelled`, so
    that their losses add up to the batch's. With a `stride` above 1 only every stride-th pixel is compared, with the
    logits that the upsampled masks have there: at many classes the loss is much of an update's cost, and neighbouring
    pixels say little new.
    Raises ConfigError as `require_stride` does.
    """
    require_stride(stride, patch_size)
    truth = _compared(labels, stride).long()
    logits = _upsampled(masks, patch_size, stride, (labels.shape[1], labels.shape[2]))
    if torch.are_deterministic_algorithms_enabled():
        # a GPU sums over images in any order, but over rows in one
        logits, truth = logits.flatten(2).transpose(1, 2).flatten(0, 1), truth.flatten()
    total = F.cross_entropy(logits, truth, weight=weights, ignore_index=ignore, reduction="sum")
    if count is None:
        count = labelled(labels, stride, weights, ignore)
    return total / count.clamp(min=torch.finfo(torch.float32).tiny)


def labelled(labels: Tensor, stride: int = 1, weights: Tensor | None = None, ignore: int = 255) -> Tensor:
    """How many pixels `segmentation_loss` compares, a scalar: integer, or float32 where classes have `weights` [K]."""
    truth = _compared(labels, stride)
    keep = truth != ignore
    if weights is None:
        return keep.sum()
    return (weights[torch.where(keep, truth, 0).long()] * keep).sum()


def _compared(labels: Tensor, stride: int) -> Tensor:
    return labels[:, stride // 2 :: stride, stride // 2 :: stride]


def _upsampled(masks: Tensor, patch_size: int, stride: int, size: tuple[int, int]) -> Tensor:
    """Bilinear logits of an image of `size` (H, W) at the pixels that are compared, float32 [B, K, H', W'].

    `F.interpolate` makes whole images, whose pixels lie half a pixel beside those of an even stride. Interpolation is
    linear along each side, so it is a product with a matrix a side.
    """
    with torch.autocast(masks.device.type, enabled=False):
        down, along = (
            _shares(patches, patch_size, stride, pixels, masks.device)
            for patches, pixels in zip(masks.shape[2:], size, strict=True)
        )
        return down @ (masks.float() @ along.t())


def _shares(patches: int, patch_size: int, stride: int, pixels: int, device: torch.device) -> Tensor:
    """What each compared one of `pixels` along a side takes of each patch, float32 [pixels / stride, patches]."""
    assert pixels <= patches * patch_size
    # in halves of a pixel, in which all is whole: a patch's middle lies patch_size behind its start
    places = 2 * torch.arange(stride // 2, pixels, stride, device=device) + 1 - patch_size
    period = 2 * patch_size
    away = (places.clamp(0, period * (patches - 1))[:, None] - period * torch.arange(patches, device=device)).abs()
    return (period - away).clamp(min=0) / period


def require_finite(finite: bool, step: int, advice: str) -> None:
    """Raises ConfigError when a loss or weight is no longer a number, ending in what to do."""
    if not finite:
        raise ConfigError(f"training came apart at step {step}: the loss or a weight is no longer a number; {advice}")


def finite_weights(module: nn.Module) -> bool:
    """Whether every weight is a number."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


def require_stride(stride: int, patch_size: int) -> None:
    """Raises ConfigError when a loss stride does not divide the patch size."""
    if stride < 1 or patch_size % stride:
        raise ConfigError(f"loss stride {stride} does not divide the patch size {patch_size}; use one that does, or 1")


def class_weights(labels: Iterable[np.ndarray], num_classes: int) -> Tensor:
    """Square roots of inverse class frequencies, float32 [K], so scaled that their mean over pixels is 1.

    labels: integer maps, perhaps a sample of all; values from `num_classes` on are ignored. A class that never occurs
    there gets the largest weight of the others, as it can be no commoner by much; where none occurs, all get 1.
    """
    counts = np.zeros(num_classes, np.int64)
    for one in labels:
        counts += np.bincount(one.ravel(), minlength=num_classes)[:num_classes]
    share = counts / max(int(counts.sum()), 1)
    seen = counts > 0
    weights = np.ones(num_classes)
    weights[seen] = share[seen] ** -0.5
    weights[~seen] = weights[seen].max(initial=1.0)
    weights /= (share * weights).sum() or 1.0
    return torch.from_numpy(weights.astype(np.float32))
