"""The picture of a confusion matrix: what stands where, for few classes and for many."""

import numpy as np
import pytest

from segmenter.confusion import confusion_picture


@pytest.mark.parametrize("K", [1, 2, 11, 150])
def test_every_class_gets_a_cell(K: int) -> None:
    matrix = np.diag(np.arange(1, K + 1))
    picture = confusion_picture(matrix, [f"class {index}" for index in range(K)])
    assert picture.dtype == np.uint8
    H, W = picture.shape[:2]
    assert H >= 12 * K
    assert max(12 * K, 460) <= W
    assert max(H, W) < 2500
    # a matrix that is right has blue cells and none of the deep red of a mistake, but in the key
    matrix_part = picture[: H - 60].astype(int)
    deep = matrix_part[..., 2] - matrix_part[..., 0] > 60
    assert deep.sum() > 0.4 * K * 12 * 12
    assert not (matrix_part[..., 0] - matrix_part[..., 2] > 60).any()


def test_a_mistake_shows_in_its_row_and_column() -> None:
    K = 20
    matrix = np.diag(np.full(K, 100))
    blank = confusion_picture(matrix, ["c"] * K)
    matrix[3, 3], matrix[3, 15] = 40, 60
    picture = confusion_picture(matrix, ["c"] * K)
    rows, columns = np.nonzero((picture != blank).any(-1))
    changed = np.zeros(blank.shape[:2], bool)
    changed[rows, columns] = True
    # the row of class 3 alone changed; in it one cell is red, twelve cells right of the diagonal's
    assert np.ptp(rows) < 31
    red = (picture[..., 0].astype(int) - picture[..., 2] > 60) & changed
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 60) & changed
    assert red.any()
    assert np.nonzero(red)[1].mean() - np.nonzero(blue)[1].mean() == pytest.approx(12 * 31, abs=4)


def test_a_class_without_truth_is_grey_and_long_names_are_cut() -> None:
    matrix = np.array([[5, 1], [0, 0]])
    picture = confusion_picture(matrix, ["a", "n" * 300])
    assert (picture == (232, 233, 230)).all(-1).sum() > 1000
    assert picture.shape[1] < 600
