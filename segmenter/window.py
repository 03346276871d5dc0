"""Sliding windows, several scales and flips: how the paper evaluates images of any size."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter.config import Preprocess
from segmenter.errors import ConfigError, ImageError
from segmenter.preprocess import normalize


def anchors(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side of `length` pixels: every `stride`, the last one flush with the end."""
    return [*range(0, max(length - window, 0), stride), length - window]


MOST_PIXELS = 89_478_485  # of an enlarged image: what Pillow takes for a bomb


def enlarge(image: Tensor, window: int) -> Tensor:
    """[1, 3, h, w] enlarged so that its shorter side is `window`; larger images come back as they are.

    Raises ImageError for an image so narrow that it would become one of more than `MOST_PIXELS`.
    """
    h, w = image.shape[-2:]
    if min(h, w) >= window:
        return image
    # int() of a float product, as the official code rounds
    size = (window, int(w / h * window)) if h < w else (int(h / w * window), window)
    if size[0] * size[1] > MOST_PIXELS:
        raise ImageError(
            f"image {h}x{w}: its shorter side enlarged to the window's {window} makes it larger than {MOST_PIXELS}"
            " pixels; take a smaller window, or leave it out"
        )
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def window_logits(
    model: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, window_batch: int = 1
) -> Tensor:
    """Logits [K, h, w] of an image [1, 3, h, w], both sides >= `window`: the mean over the windows covering a pixel.

    window_batch: windows a call, at least 1.

    Raises ConfigError when windows would leave gaps, the image is smaller than one, or window_batch is below 1.
    """
    h, w = image.shape[-2:]
    if window_batch < 1:
        raise ConfigError(f"window_batch {window_batch}: wanted at least 1 window a call")
    if not 0 < stride <= window:
        raise ConfigError(f"stride {stride} with window {window}: wanted 1 to {window}, or pixels are left out")
    if min(h, w) < window:
        raise ConfigError(f"image {h}x{w} is smaller than the {window} pixel window; enlarge it first")
    starts = [(y, x) for y in anchors(h, window, stride) for x in anchors(w, window, stride)]
    total: Tensor | None = None
    count = image.new_zeros(1, h, w)
    for first in range(0, len(starts), window_batch):
        batch = starts[first : first + window_batch]
        logits = model(torch.cat([image[..., y : y + window, x : x + window] for y, x in batch]))
        if total is None:
            total = logits.new_zeros(logits.shape[1], h, w)
        for (y, x), one in zip(batch, logits, strict=True):
            total[:, y : y + window, x : x + window] += one
            count[:, y : y + window, x : x + window] += 1
    assert total is not None
    return total / count


@torch.no_grad()  # not inference_mode, whose tensors nobody may change in place
def segment(
    model: Callable[[Tensor], Tensor],
    views: Sequence[tuple[Tensor, bool]],
    size: tuple[int, int],
    window: int,
    stride: int,
    window_batch: int = 1,
) -> Tensor:
    """Mean class probabilities [K, H, W] over views of one image, each read through sliding windows.

    model: [B, 3, window, window] -> logits [B, K, window, window]. views: `(image [1, 3, h, w], flipped)`; a view
    smaller than the window is enlarged. size: (H, W) to answer at; window, stride: pixels; window_batch: windows a
    call.
    Source: paper, section 4.2, "Inference"; the order of averaging, resizing and softmax is the official code's.
    Raises ConfigError without views, and as `window_logits` does.
    """
    if not views:
        raise ConfigError("no views to segment; pass at least [(image, False)]")
    mean: Tensor | None = None
    for image, flipped in views:
        logits = window_logits(model, enlarge(image, window), window, stride, window_batch)
        logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        if flipped:
            logits = logits.flip(2)
        probabilities = logits.softmax(0)
        mean = probabilities if mean is None else mean + probabilities
    assert mean is not None
    return mean / len(views)


def scaled_views(
    image: np.ndarray,
    preprocess: Preprocess,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    resize: tuple[int, int] | None = None,
) -> list[tuple[Tensor, bool]]:
    """The views of `segment` for an image, uint8 [H, W, C]: each scale, and each mirrored when `flip`.

    resize: as of `view_size`. A view is resized from the image itself, without antialiasing and to whole levels, as
    cv2.INTER_LINEAR does (within one level of its fixed-point arithmetic), and normalised then.
    Source: the paper's multi-scale inference; sizes and order are mmsegmentation's, which the official code calls.
    """
    views = []
    for scale in scales:
        view = normalize(_resized(image, view_size(image.shape[:2], scale, resize)), preprocess)
        views.append((view, False))
        if flip:
            views.append((view.flip(3), True))
    return views


def view_size(size: Sequence[int], scale: float, resize: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) in pixels of a view of an image of `size`, its ratio kept, sides rounded half up.

    resize: the longest long side and short side at scale 1, the image then being as large as both allow; at other
    scales both bounds are scaled, and cut to whole pixels. The image's own size is scaled when None.
    """
    H, W = size
    factor = scale
    if resize is not None:
        longest, shortest = (int(bound * scale) for bound in (max(resize), min(resize)))
        factor = min(longest / max(H, W), shortest / min(H, W))
    return scaled_size(size, factor)


def scaled_size(size: Sequence[int], factor: float) -> tuple[int, int]:
    """(H, W) times a factor, rounded half up as mmcv does; at least a pixel a side."""
    H, W = size
    return max(1, int(H * factor + 0.5)), max(1, int(W * factor + 0.5))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    planar = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    resized = F.interpolate(planar, size, mode="bilinear", align_corners=False)
    return (resized[0].permute(1, 2, 0) + 0.5).to(torch.uint8).numpy()
