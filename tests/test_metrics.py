import math

import numpy as np
import pytest
import torch

from segmenter.metrics import ConfusionMatrix


def test_known_values_with_ignored_pixels():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 1, 1, 255]], np.uint8))
    assert matrix.matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert matrix.iou[:2].tolist() == [0.5, 0.5]
    assert math.isnan(matrix.iou[2])
    assert matrix.miou == 0.5
    assert matrix.pixel_accuracy == pytest.approx(2 / 3)
    assert matrix.mean_accuracy == pytest.approx((1 + 0.5) / 2)


def test_against_sets_of_pixels():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 6, (2, 30, 40)) * rng.integers(0, 2, (2, 30, 40))
    truth[5:9] = 255
    truth[truth == 4] = 3
    matrix = ConfusionMatrix(7)
    matrix.update(labels.astype(np.uint8), truth.astype(np.uint8))
    pixels = [(int(t), int(p)) for t, p in zip(truth.ravel(), labels.ravel(), strict=True) if t != 255]
    iou, accuracy = [], []
    for k in range(7):
        true, said = ({at for at, pair in enumerate(pixels) if pair[side] == k} for side in (0, 1))
        iou.append(len(true & said) / len(true | said) if true | said else math.nan)
        accuracy.append(len(true & said) / len(true) if true else math.nan)
    np.testing.assert_array_equal(matrix.iou, iou)
    np.testing.assert_array_equal(matrix.accuracy, accuracy)
    assert math.isnan(iou[6])
    assert iou[4] == 0
    assert math.isnan(accuracy[4])
    assert matrix.miou == pytest.approx(sum(iou[:6]) / 6)
    assert matrix.miou_in_truth == pytest.approx(sum(iou[k] for k in (0, 1, 2, 3, 5)) / 5)
    assert matrix.mean_accuracy == pytest.approx(sum(accuracy[k] for k in (0, 1, 2, 3, 5)) / 5)
    assert matrix.pixel_accuracy == sum(t == p for t, p in pixels) / len(pixels)


def test_a_class_only_ever_predicted_counts_as_zero():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([1, 0]), torch.tensor([0, 0]))
    assert matrix.iou.tolist() == [0.5, 0.0]
    assert matrix.miou == 0.25


def test_updates_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 5, (2, 4, 9, 9))
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(labels, truth)
    for one, other in zip(labels, truth, strict=True):
        parts.update(one, other)
    assert np.array_equal(whole.matrix, parts.matrix)
    assert whole.matrix.sum() == truth.size


def test_nothing_counted_is_not_zero():
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros(3, np.uint8), np.full(3, 255, np.uint8))
    assert math.isnan(matrix.miou)
    assert math.isnan(matrix.pixel_accuracy)


@pytest.mark.parametrize(
    ("labels", "truth", "message"),
    [([0, 2], [0, 1], "labels hold values 0 to 2"), ([0, 1], [0, 7], "truth hold"), ([0], [0, 1], "differ in shape")],
)
def test_impossible_values_are_named(labels, truth, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(2).update(np.array(labels), np.array(truth))


def test_fractions_are_no_labels():
    with pytest.raises(ValueError, match="float"):
        ConfusionMatrix(2).update(np.array([0.5]), np.array([0]))
