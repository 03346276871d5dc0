"""How well a difference of mIoU is known from so many images: the paired bootstrap.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6: the images are drawn again with replacement,
both engines judged on the same draw, and the spread of the difference over many draws is its standard error.
"""

from collections.abc import Sequence

import numpy as np

from segmenter.metrics import ConfusionMatrix

DRAWS = 200  # the error of a standard error from so many is about 5 %


def drop_error(mine: Sequence[ConfusionMatrix], reference: Sequence[ConfusionMatrix]) -> float | None:
    """Standard error of the mIoU that `mine` loses against `reference`, each a matrix an image of the same images.

    None where it cannot be told: with fewer than 2 images.
    """
    if len(mine) < 2:
        return None
    pairs = [np.stack([one.matrix for one in matrices]).astype(np.float64) for matrices in (mine, reference)]
    random = np.random.default_rng(0)
    drops = []
    for _ in range(DRAWS):
        times = np.bincount(random.integers(0, len(mine), len(mine)), minlength=len(mine)).astype(np.float64)
        ours, theirs = (_miou(np.tensordot(times, matrices, 1)) for matrices in pairs)
        drops.append(theirs - ours)
    error = float(np.std(drops, ddof=1))
    return error if np.isfinite(error) else None


def _miou(matrix: np.ndarray) -> float:
    counted = ConfusionMatrix(len(matrix))
    counted.matrix = matrix
    return counted.miou
