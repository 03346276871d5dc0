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
    random = np.random.default_rng(0)
    chosen = random.integers(0, len(mine), (DRAWS, len(mine)))
    times = np.stack([np.bincount(one, minlength=len(mine)) for one in chosen]).astype(np.float64)
    ours, theirs = (
        # one product for all draws: thousands of images of 150 classes are hundreds of megabytes to go through
        [
            _miou(matrix)
            for matrix in np.tensordot(times, np.stack([one.matrix for one in matrices]).astype(np.float64), 1)
        ]
        for matrices in (mine, reference)
    )
    error = float(np.std(np.subtract(theirs, ours), ddof=1))
    return error if np.isfinite(error) else None


def _miou(matrix: np.ndarray) -> float:
    counted = ConfusionMatrix(len(matrix))
    counted.matrix = matrix
    return counted.miou_in_truth
