"""Measures of networks that tell one class from the rest, as glass and salient-object papers report them."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from segmenter.metrics import Labels


class Judged(NamedTuple):
    """One image: whether its truth has the class, the mean |score - truth|, and the IoU, 1 where neither has it."""

    present: bool
    error: float
    iou: float


class BinaryMeasures:
    """MAE, IoU and BER over images of two classes, of which the second (glass) is looked for.

    Pixels whose truth is `ignore` do not count, nor images that have no others. An image that has the class nowhere,
    and is told so, has an IoU of 1: MAE and IoU are also given over the images with the class and over those without.
    Source: Huo et al. 2023 and its code for MAE and the mean IoU of images, which it gives of images with glass and of
    those without and never of all; Nguyen et al. 2017 for BER.
    """

    def __init__(self, ignore: int = 255) -> None:
        self.ignore = ignore
        self.images: list[Judged] = []  # in any order
        self.counts = np.zeros((2, 2), np.int64)  # truth, prediction
        self._scores: np.ndarray | None = None

    def watch(self, probabilities: Tensor) -> None:
        """Keep what a network says of an image, [2, H, W], for the `update` that follows."""
        self._scores = probabilities[1].detach().cpu().numpy()

    def update(self, truth: Labels, scores: ArrayLike | None = None) -> None:
        """Add an image. truth: integers [H, W]; scores: the second class's probability [H, W], else what was watched.

        Raises ValueError when the shapes differ or there are no scores.
        """
        found = self._scores if scores is None else np.asarray(scores)
        true = np.asarray(truth)
        if found is None or found.shape != true.shape:
            shape = None if found is None else found.shape
            raise ValueError(f"scores {shape} and truth {true.shape} differ in shape; resize one to the other")
        self._scores = None
        kept = true != self.ignore
        score, there = found[kept].astype(np.float64), true[kept] == 1
        if not there.size:
            return
        said = score > 0.5
        either = int((said | there).sum())
        iou = float((said & there).sum() / either) if either else 1.0
        self.images.append(Judged(bool(there.any()), float(np.abs(score - there).mean()), iou))
        self.counts += np.bincount(2 * there + said, minlength=4).reshape(2, 2)

    @property
    def mae(self) -> float:
        """Mean over the images of the mean absolute error of the scores, 0 to 1; NaN before the first."""
        return _mean([image.error for image in self.images])

    @property
    def image_iou(self) -> float:
        """Mean over the images of the second class's IoU, 0 to 1; NaN before the first."""
        return _mean([image.iou for image in self.images])

    @property
    def ber(self) -> float:
        """Balanced error rate over all pixels, 0 to 1 (papers write it in percent); NaN unless both classes occur."""
        pixels = self.counts.sum(1)
        if not pixels.all():
            return float("nan")
        return float(1.0 - np.mean(np.diag(self.counts) / pixels))

    def summary(self) -> dict[str, float]:
        """The measures by name; `present` is over the images with the class, `absent` over the others."""
        found = {"mae": self.mae, "image_iou": self.image_iou, "ber": self.ber}
        for name, present in (("present", True), ("absent", False)):
            images = [image for image in self.images if image.present is present]
            found[f"mae_{name}"] = _mean([image.error for image in images])
            found[f"image_iou_{name}"] = _mean([image.iou for image in images])
        return found


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else float("nan")
