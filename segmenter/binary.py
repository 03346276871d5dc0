"""Measures of networks that tell one class from the rest, as glass and salient-object papers report them."""

import math

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from segmenter.metrics import Labels


class BinaryMeasures:
    """MAE, IoU and BER over images of two classes, of which the second (glass) is looked for.

    Pixels whose truth is `ignore` do not count, nor images that have no others.
    Source: Huo et al. 2023 and its code for MAE and the mean IoU of images; Nguyen et al. 2017 for BER.
    """

    def __init__(self, ignore: int = 255) -> None:
        self.ignore = ignore
        self.errors: list[float] = []  # of each image, in any order: mean |score - truth|
        self.ious: list[float] = []  # of each image: 1 where neither truth nor prediction has the class
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
        self.errors.append(float(np.abs(score - there).mean()))
        either = int((said | there).sum())
        self.ious.append(float((said & there).sum() / either) if either else 1.0)
        self.counts += np.bincount(2 * there + said, minlength=4).reshape(2, 2)

    @property
    def mae(self) -> float:
        """Mean over the images of the mean absolute error of the scores, 0 to 1; NaN before the first."""
        return math.fsum(self.errors) / len(self.errors) if self.errors else float("nan")

    @property
    def image_iou(self) -> float:
        """Mean over the images of the second class's IoU, 0 to 1; NaN before the first."""
        return math.fsum(self.ious) / len(self.ious) if self.ious else float("nan")

    @property
    def ber(self) -> float:
        """Balanced error rate over all pixels, 0 to 1 (papers write it in percent); NaN unless both classes occur."""
        pixels = self.counts.sum(1)
        if not pixels.all():
            return float("nan")
        return float(1.0 - np.mean(np.diag(self.counts) / pixels))

    def summary(self) -> dict[str, float]:
        """The measures by name."""
        return {"mae": self.mae, "image_iou": self.image_iou, "ber": self.ber}
