"""The confusion matrix and what follows from it: the only copy of mIoU in the project."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Labels = np.ndarray | Tensor


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over pixels whose truth is not `ignore`.

    `matrix[t, p]` is the number of pixels of true class t labelled p, int64 [K, K].
    """

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        self.num_classes, self.ignore = num_classes, ignore
        self.matrix = np.zeros((num_classes, num_classes), np.int64)

    def update(self, labels: Labels, truth: Labels) -> None:
        """Add predicted `labels` against `truth`, integer arrays of one shape.

        Raises ValueError when shapes differ or a value is neither a class nor, in `truth`, the ignored one.
        """
        predicted, true = _integers(labels), _integers(truth)
        if predicted.shape != true.shape:
            raise ValueError(
                f"labels {predicted.shape} and truth {true.shape} differ in shape; resize one to the other"
            )
        keep = true != self.ignore
        predicted, true = predicted[keep], true[keep]
        for name, values in (("labels", predicted), ("truth", true)):
            if values.size and not (values.min() >= 0 and values.max() < self.num_classes):
                raise ValueError(
                    f"{name} hold values {values.min()} to {values.max()}; wanted 0 to {self.num_classes - 1}"
                    f" or, in the truth, {self.ignore} to ignore"
                )
        counts = np.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.matrix += counts.reshape(self.num_classes, self.num_classes)

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union a class, float64 [K]; NaN for a class in neither truth nor predictions."""
        hit = np.diag(self.matrix)
        return ratio(hit, self.matrix.sum(0) + self.matrix.sum(1) - hit)

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that occur; NaN before the first counted pixel."""
        return mean_of_present(self.iou)

    @property
    def miou_in_truth(self) -> float:
        """Mean of `iou` over the classes in the truth: what engines are compared by.

        Of a class that no truth shows, one pixel would be an IoU of 0 in the mean of the engine that gives it alone.
        """
        return mean_of_present(np.where(self.matrix.sum(1) > 0, self.iou, np.nan))

    @property
    def pixel_accuracy(self) -> float:
        """Share of counted pixels labelled right; NaN before the first."""
        return float(ratio(np.diag(self.matrix).sum(), self.matrix.sum()))

    @property
    def accuracy(self) -> np.ndarray:
        """Share of a class's pixels labelled right, float64 [K]; NaN for a class the truth has not."""
        return ratio(np.diag(self.matrix), self.matrix.sum(1))

    @property
    def mean_accuracy(self) -> float:
        """Mean of `accuracy` over the classes in the truth."""
        return mean_of_present(self.accuracy)


def _integers(labels: Labels) -> np.ndarray:
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels of type {array.dtype}: wanted integers")
    return array.astype(np.int64)


def ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """Elementwise `part / whole` in float64, NaN where both are 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def mean_of_present(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN when none is."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def change(drop: float) -> str:
    """A loss of mIoU as it is shown everywhere, engine minus PyTorch: -0.0031 where it lost, 0.0000 without a sign."""
    return signed(-drop)


def sqnr_db(signal: float, noise: float) -> float:
    """Decibels of a signal's power over that of what quantisation adds; infinite where it adds nothing."""
    return 10.0 * float(np.log10(signal / noise)) if noise else float("inf")


def signed(value: float) -> str:
    """With its sign and four digits; zero has none."""
    told = f"{value:+.4f}"
    return told[1:] if float(told) == 0 else told
