"""Connected components and recall by their size, against a flood fill."""

import json
import math
from collections import deque

import numpy as np
import pytest

from segmenter.objects import ObjectRecall, components


def flood(labels: np.ndarray) -> np.ndarray:
    """Components by a flood fill from each pixel in reading order, int [H, W]."""
    H, W = labels.shape
    ids, count = np.full((H, W), -1), 0
    for start in np.ndindex(H, W):
        if ids[start] >= 0:
            continue
        ids[start], queue = count, deque([start])
        while queue:
            y, x = queue.popleft()
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    v, u = y + dy, x + dx
                    if 0 <= v < H and 0 <= u < W and ids[v, u] < 0 and labels[v, u] == labels[y, x]:
                        ids[v, u] = count
                        queue.append((v, u))
        count += 1
    return ids


def spiral(side: int) -> np.ndarray:
    """A line one pixel wide wound into a square, which no component labelling finds in one pass."""
    labels, y, x, dy, dx = np.zeros((side, side), np.uint8), 0, 0, 0, 1
    while True:
        labels[y, x] = 1
        for _ in range(2):
            v, u, beyond_v, beyond_u = y + dy, x + dx, y + 2 * dy, x + 2 * dx
            free = 0 <= v < side and 0 <= u < side and not labels[v, u]
            room = not (0 <= beyond_v < side and 0 <= beyond_u < side) or not labels[beyond_v, beyond_u]
            if free and room:
                break
            dy, dx = dx, -dy
        else:
            return labels
        y, x = v, u


@pytest.mark.parametrize(
    "labels",
    [
        np.random.default_rng(0).integers(0, 2, (25, 31)),
        np.random.default_rng(1).integers(0, 6, (40, 17)),
        np.random.default_rng(2).random((30, 30)) < 0.3,
        np.indices((9, 8)).sum(0) % 2,  # a chessboard: the corners touch
        spiral(31),
        spiral(31).T[::-1],
        np.zeros((1, 1), int),
        np.arange(7)[None] // 2,
        np.arange(7)[:, None] // 2,
    ],
    ids=["noise", "classes", "sparse", "chessboard", "spiral", "turned spiral", "pixel", "row", "column"],
)
def test_components_are_a_flood_fills(labels: np.ndarray) -> None:
    found, count = components(labels)
    wanted = flood(labels)
    np.testing.assert_array_equal(found, wanted)
    assert count == wanted.max() + 1


def test_counts_against_the_definition() -> None:
    random = np.random.default_rng(0)
    truth = np.kron(random.integers(0, 3, (9, 12)), np.ones((4, 4), int)).astype(np.uint8)
    truth[10:14, 5:30] = 255
    labels = np.where(random.random(truth.shape) < 0.45, random.integers(0, 4, truth.shape), truth).astype(np.uint8)
    measure = ObjectRecall(4, areas=(16, 48))
    wanted = np.zeros((4, 4, 3), int)
    for part in (slice(0, 18), slice(18, 36)):
        measure.update(labels[part], truth[part])
        ids = flood(truth[part])
        for index in range(ids.max() + 1):
            inside = ids == index
            k = truth[part][inside][0]
            if k != 255:
                pixels, right = inside.sum(), (labels[part][inside] == k).sum()
                size = 0 if pixels < 16 else 1 if pixels < 48 else 2
                wanted[:, k, size] += 1, right >= pixels / 2, pixels, right
    np.testing.assert_array_equal(measure.counts, wanted)
    assert (wanted[0].sum(0) > 0).all()


def test_small_things_are_told_from_large_ones() -> None:
    truth = np.zeros((120, 120), np.uint8)
    truth[5:10, 5:10] = 1
    truth[50:90, 50:90] = 1
    labels = truth.copy()
    labels[5:10, 5:10] = 0
    labels[50:60, 50:90] = 0
    measure = ObjectRecall(3)
    measure.update(labels, truth)
    summary = measure.summary(("ground", "thing", "never"))
    assert summary["small"] == {
        "objects": 1,
        "found": 0.0,
        "recall": 0.0,
        "mean_recall": 0.0,
        "by_class": {"thing": 0.0},
    }
    assert summary["medium"]["found"] == 1.0
    assert summary["medium"]["recall"] == 0.75
    assert summary["large"]["by_class"] == {"ground": 1.0}
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(("right", "found"), [(7, 0.0), (8, 1.0)])
def test_half_of_its_pixels_make_a_thing_found(right: int, found: float) -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels.ravel()[:right] = 1
    measure = ObjectRecall(2)
    measure.update(labels, np.ones((4, 4), np.uint8))
    assert measure.summary(("ground", "thing"))["small"]["found"] == found


def test_without_objects_there_is_no_recall() -> None:
    measure = ObjectRecall(2)
    measure.update(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    assert not measure.counts.any()
    assert measure.summary(("a", "b"))["small"]["recall"] is None
    assert math.isnan(measure.recall[0, 0])
