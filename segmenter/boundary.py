"""How well labels follow the edges of the truth: Boundary IoU (Cheng et al. 2021, "Boundary IoU", CVPR)."""

import math

import numpy as np

from segmenter.errors import ConfigError
from segmenter.metrics import mean_of_present, ratio


class BoundaryIoU:
    """IoU of the pixels of each class near its own edge: in the truth, in the labels, both counted over all images.

    band: how far from the edge, by the larger of the two distances along the axes; below 1 it is a share of each
    image's diagonal (at least a pixel), else pixels. The picture's frame is an edge, as in the authors' code; the
    border of ignored pixels is none, and they count nowhere.
    Raises ConfigError for a band that is no positive number, or from 1 on no whole one.
    """

    def __init__(self, num_classes: int, band: float, ignore: int = 255) -> None:
        if not 0 < band < math.inf or (band >= 1 and band != int(band)):
            raise ConfigError(f"band {band:g}: wanted whole pixels, or below 1 a share of the diagonal, such as 0.02")
        self.num_classes, self.ignore, self.band = num_classes, ignore, band
        # int64 [3, K]: pixels near an edge in the truth, in the labels, and in both with one class
        self.counts = np.zeros((3, num_classes), np.int64)

    def update(self, labels: np.ndarray, truth: np.ndarray) -> None:
        """Add predicted `labels` against `truth`, integer [H, W] both, as `ConfusionMatrix.update` takes them."""
        distance = self.distance(truth.shape)
        judged = truth != self.ignore
        near_true = near_edges(truth, judged, distance) & judged
        near_found = near_edges(labels, judged, distance) & judged
        both = near_true & near_found & (labels == truth)
        for row, near, values in zip(self.counts, (near_true, near_found, both), (truth, labels, truth), strict=True):
            row += np.bincount(values[near], minlength=self.num_classes)

    def distance(self, shape: tuple[int, ...]) -> int:
        """The band's width in pixels in an image of (H, W)."""
        return int(self.band) if self.band >= 1 else max(1, round(self.band * math.hypot(*shape)))

    @property
    def iou(self) -> np.ndarray:
        """Boundary IoU a class, float64 [K]; NaN for a class in neither truth nor labels."""
        true, found, both = self.counts
        return ratio(both, true + found - both)

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that occur; NaN before the first counted pixel."""
        return mean_of_present(self.iou)


def near_edges(labels: np.ndarray, judged: np.ndarray, distance: int) -> np.ndarray:
    """Pixels with another label, or the picture's frame, at most `distance` pixels away: bool [H, W].

    labels: integer [H, W]; judged: bool [H, W], false for pixels whose label is no label.
    """
    wide = labels.astype(np.int32)
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    largest = _largest_nearby(np.where(judged, wide, low), distance)
    smallest = ~_largest_nearby(~np.where(judged, wide, high), distance)
    near = largest > smallest
    near[:distance] = near[-distance:] = near[:, :distance] = near[:, -distance:] = True
    return near


def _largest_nearby(values: np.ndarray, distance: int) -> np.ndarray:
    """Maximum over a square of 2 distance + 1 pixels around each, as far as it lies within the picture."""
    for axis in (0, 1):
        span = 2 * distance + 1
        pad = [(0, 0), (0, 0)]
        pad[axis] = distance, distance
        rows = np.moveaxis(np.pad(values, pad, constant_values=np.iinfo(values.dtype).min), axis, 0)
        # the maximum over twice as many from two over half of them, until the rest overlaps
        covered = 1
        while covered < span:
            step = min(covered, span - covered)
            rows = np.maximum(rows[:-step], rows[step:])
            covered += step
        values = np.moveaxis(rows, 0, axis)
    return values
