"""How much of small and of large things is found: recall by the size of the truth's connected components."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from segmenter.metrics import mean_of_present, ratio

# COCO's areas (Lin et al. 2014): below 32x32 pixels, below 96x96, and the rest
SIZES = ("small", "medium", "large")
AREAS = (32 * 32, 96 * 96)


class ObjectRecall:
    """Recall of the truth's connected components (8 neighbours, one class), sorted by their pixels.

    areas: where one size ends and the next begins, in pixels. `counts`, int64 [4, K, sizes]: components, those of which
    at least half the pixels are labelled right, their pixels, and the pixels labelled right.
    """

    def __init__(self, num_classes: int, ignore: int = 255, areas: tuple[int, int] = AREAS) -> None:
        self.num_classes, self.ignore, self.areas = num_classes, ignore, areas
        self.counts = np.zeros((4, num_classes, len(SIZES)), np.int64)

    def update(self, labels: np.ndarray, truth: np.ndarray) -> None:
        """Add predicted `labels` against `truth`, integer [H, W] both, as `ConfusionMatrix.update` takes them."""
        ids, count = components(truth)
        flat = truth.ravel()
        pixels = np.bincount(ids.ravel(), minlength=count)
        right = np.bincount(ids[labels == truth], minlength=count)
        classes = np.zeros(count, flat.dtype)
        classes[ids.ravel()] = flat
        kept = classes != self.ignore
        pixels, right, classes = pixels[kept], right[kept], classes[kept]
        size = np.searchsorted(self.areas, pixels, side="right")
        for table, weights in zip(self.counts, (np.ones_like(pixels), 2 * right >= pixels, pixels, right), strict=True):
            np.add.at(table, (classes, size), weights)

    @property
    def recall(self) -> np.ndarray:
        """Share of the pixels labelled right by class and size, float64 [K, sizes]; NaN where there are none."""
        return ratio(self.counts[3], self.counts[2])

    def summary(self, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
        """For each size: components, share of them found, share of pixels right, also by class and its mean over these.

        found: at least half of a component's pixels carry its class. None where there are no components.
        """
        objects, found, pixels, right = self.counts.sum(1)
        named: dict[str, dict[str, Any]] = {}
        for index, size in enumerate(SIZES):
            by_class = self.recall[:, index]
            values = {
                "found": float(ratio(found[index], objects[index])),
                "recall": float(ratio(right[index], pixels[index])),
                "mean_recall": mean_of_present(by_class),
            }
            named[size] = {
                "objects": int(objects[index]),
                **{name: None if np.isnan(value) else value for name, value in values.items()},
                "by_class": {
                    name: float(value) for name, value in zip(classes, by_class, strict=True) if not np.isnan(value)
                },
            }
        return named


def components(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected components of equal labels, 8 neighbours, in the order of their first pixels.

    labels: integer [H, W]. Returns numbers int64 [H, W] from 0, and how many there are.
    """
    H, W = labels.shape
    # pixels in a row with one label are a run; runs of neighbouring rows that touch are joined
    starts = np.ones((H, W), bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = np.cumsum(starts.ravel()).reshape(H, W) - 1
    count = int(runs[-1, -1]) + 1
    pairs = []
    for shift in (-1, 0, 1):
        above = slice(max(0, -shift), W - max(0, shift))
        below = slice(max(0, shift), W - max(0, -shift))
        # where two runs begin to touch; the pixels after say the same
        fresh = starts[:-1, above] | starts[1:, below]
        same = fresh & (labels[:-1, above] == labels[1:, below])
        pairs.append(np.unique(runs[:-1, above][same] * count + runs[1:, below][same]))
    first, second = np.divmod(np.unique(np.concatenate(pairs)), count)
    roots, numbers = np.unique(_joined(first, second, count), return_inverse=True)
    return numbers[runs], len(roots)


def _joined(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """The smallest member of each one's group, int64 [count]; `first` and `second` [n] are pairs of one group each."""
    parent = np.arange(count)
    while True:
        a, b = parent[first], parent[second]
        apart = a != b
        if not apart.any():
            return parent
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        # each root under the smallest root it meets, then everybody under a root
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(parent, above := parent[parent]):
            parent = above
