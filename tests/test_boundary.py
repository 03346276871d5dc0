"""Boundary IoU against the definition written out pixel by pixel."""

import math

import numpy as np
import pytest

from segmenter.boundary import BoundaryIoU
from segmenter.errors import ConfigError


def blobs(random: np.random.Generator, K: int, H: int, W: int) -> np.ndarray:
    return np.kron(random.integers(0, K, (H // 4 + 1, W // 4 + 1)), np.ones((4, 4), int))[:H, :W].astype(np.uint8)


def near(labels: np.ndarray, judged: np.ndarray, distance: int) -> np.ndarray:
    """Whether a judged pixel of another label, or what is beyond the frame, is within the distance of each pixel."""
    H, W = labels.shape
    found = np.zeros((H, W), bool)
    for y in range(H):
        for x in range(W):
            inside = judged[y, x]
            beyond = y < distance or x < distance or y + distance >= H or x + distance >= W
            rows = slice(max(0, y - distance), y + distance + 1)
            columns = slice(max(0, x - distance), x + distance + 1)
            others = labels[rows, columns][judged[rows, columns]]
            found[y, x] = inside and (beyond or bool((others != labels[y, x]).any()))
    return found


@pytest.mark.parametrize(("band", "distance"), [(1, 1), (2, 2), (3, 3), (5, 5), (0.1, 4)])
def test_against_the_definition(band: float, distance: int) -> None:
    random, K = np.random.default_rng(0), 4
    measure, wanted = BoundaryIoU(K, band), np.zeros((2, K))
    for _ in range(2):
        truth = blobs(random, K - 1, 23, 31)
        labels = np.where(random.random((23, 31)) < 0.1, random.integers(0, K, (23, 31)), np.roll(truth, 1, 1))
        truth[8:12, 10:20] = 255
        assert measure.distance(truth.shape) == distance
        judged = truth != 255
        edges, found = near(truth, judged, distance), near(labels, judged, distance)
        for k in range(K):
            true, said = edges & (truth == k), found & (labels == k)
            wanted[:, k] += (true & said).sum(), (true | said).sum()
        measure.update(labels.astype(np.uint8), truth)
    np.testing.assert_array_equal(measure.iou, wanted[0] / wanted[1])
    assert measure.miou == pytest.approx((wanted[0] / wanted[1]).mean())


def test_only_the_edge_counts() -> None:
    truth = np.zeros((60, 60), np.uint8)
    truth[20:40, 20:40] = 1
    shifted, hole = np.roll(truth, 2, axis=1), truth.copy()
    hole[29:31, 29:31] = 0
    values = {}
    for name, labels in (("same", truth), ("shifted", shifted), ("hole", hole)):
        measure = BoundaryIoU(3, band=2)
        measure.update(labels, truth)
        values[name] = measure.iou[1]
        assert math.isnan(measure.iou[2])
    assert values["same"] == 1.0
    # two of the four sides fall out of the band, and at the other two 18 columns stay
    assert values["shifted"] < 0.5
    # a ring of 2 pixels round the hole is new edge: 6x6 less the hole
    ring, band = 36 - 4, 20 * 20 - 16 * 16
    assert values["hole"] == band / (band + ring)


def test_nothing_judged_is_no_number() -> None:
    measure = BoundaryIoU(2, band=0.02)
    measure.update(np.zeros((5, 5), np.uint8), np.full((5, 5), 255, np.uint8))
    assert math.isnan(measure.miou)


@pytest.mark.parametrize("band", [0, -1, 1.5, math.nan, math.inf])
def test_impossible_bands_are_named(band: float) -> None:
    with pytest.raises(ConfigError, match="wanted whole pixels, or below 1 a share"):
        BoundaryIoU(2, band)
