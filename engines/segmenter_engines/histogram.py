"""Histograms that grow with what they see, and the clipping ranges that follow from them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from onnx import TensorProto

from segmenter_engines.formats import Format
from segmenter_engines.steps import Range, steps_over

_BINS = 1 << 14  # over [-reach, reach]; a tail a hundred times the bulk leaves that 80 bins a side
_SHARES: list[float] = np.geomspace(1.0, 0.02, 72).tolist()  # of the whole range, tried by the mse method: 5.5 % apart
_NEAR: list[float] = np.geomspace(0.95, 1.05, 41).tolist()  # of an end that was found
_KL_BINS, _KL_LEVELS, _KL_STRIDE = 2048, 128, 16  # as the method was published


class Histogram:
    """Counts of values seen, in equal bins over [-reach, reach]; `seen` is the exact range.

    A value beyond the reach doubles it as often as needed, and pairs of bins become one: memory stays the same however
    much is added, and nothing has to be read twice.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.reach = 0.0
        self.seen = Range(0.0, 0.0)

    def add(self, values: np.ndarray) -> None:
        """Count finite float32 values of any shape."""
        one = Range(float(values.min()), float(values.max()))
        self.seen = self.seen.union(one)
        peak = max(-one.low, one.high)
        if peak == 0.0:
            peak = self.reach or 1.0
        if self.reach == 0.0:
            self.reach = peak
        while self.reach < peak:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[_BINS // 4 : 3 * _BINS // 4] = merged
            self.reach *= 2.0
        places = ((values.ravel() + np.float32(self.reach)) * np.float32(_BINS / (2.0 * self.reach))).astype(np.int32)
        self.counts += np.bincount(np.clip(places, 0, _BINS - 1), minlength=_BINS)

    @property
    def centres(self) -> np.ndarray:
        """Middle of each bin, float64."""
        return (np.arange(_BINS) + 0.5) * (2.0 * self.reach / _BINS) - self.reach

    def percentile(self, percentile: float) -> Range:
        """Both tails clipped at a percentile, above 50 to 100, of all values."""
        share = np.cumsum(self.counts) / self.counts.sum()
        centres = self.centres
        low = centres[min(int(np.searchsorted(share, 1.0 - percentile / 100.0)), _BINS - 1)]
        high = centres[min(int(np.searchsorted(share, percentile / 100.0)), _BINS - 1)]
        return self._within(float(low), float(high))

    def mse(self, form: Format, real: int = TensorProto.FLOAT) -> Range:
        """The range that loses least to rounding and clipping together, in mean squared error.

        What is rounded to are the steps of `form` that a graph of element type `real` holds for a range, see
        `steps_over`.
        Source: Banner et al., NeurIPS 2019, whose closed form this search replaces.
        """
        held = self.counts > 0
        centres = torch.from_numpy(self.centres[held]).float()
        counts = torch.from_numpy(self.counts[held]).double()

        def error(span: Range) -> float:
            back = steps_over(span, form, real).fake(centres)
            return float((counts * (back - centres).double().square()).sum())

        whole = self.seen
        peak = max(-whole.low, whole.high)
        best = min((self._within(-peak * share, peak * share) for share in _SHARES), key=error)
        # how values fall on steps turns with the least change of a range
        best = self._one_end_at_a_time(best, whole, _SHARES, error)
        return self._one_end_at_a_time(best, best, _NEAR, error)

    def _one_end_at_a_time(
        self, best: Range, whole: Range, shares: Sequence[float], error: Callable[[Range], float]
    ) -> Range:
        """The best range, or a better one whose high end, then whose low one, is a share of the whole's."""
        best = min((best, *(self._within(best.low, whole.high * share) for share in shares)), key=error)
        return min((best, *(self._within(whole.low * share, best.high) for share in shares)), key=error)

    def entropy(self) -> Range:
        """The range that keeps the distribution of magnitudes, in Kullback-Leibler divergence, at 128 levels.

        Source: Migacz, "8-bit inference with TensorRT", GTC 2017.
        """
        edges = np.arange(_KL_BINS + 1) * (self.reach / _KL_BINS)
        counts, _ = np.histogram(np.abs(self.centres), edges, weights=self.counts)
        counts[0] = 0.0  # exact zeros, of paddings and saturated activations, would drown the rest
        best, least = _KL_BINS, np.inf
        for kept in range(_KL_LEVELS, _KL_BINS + 1, _KL_STRIDE):
            divergence = _divergence(counts, kept)
            if divergence < least:
                best, least = kept, divergence
        return self._within(-float(edges[best]), float(edges[best]))

    def _within(self, low: float, high: float) -> Range:
        # never beyond what was seen, and zero stays inside: it must be exactly representable
        return Range(min(max(low, self.seen.low), 0.0), max(min(high, self.seen.high), 0.0))


def _divergence(counts: np.ndarray, kept: int) -> float:
    """KL(P || Q): P the first `kept` bins with the tail in the last, Q those bins averaged into 128 levels."""
    p = counts[:kept].copy()
    p[-1] += counts[kept:].sum()
    total = p.sum()
    if total == 0.0:
        return np.inf
    level = np.arange(kept) * _KL_LEVELS // kept
    held = counts[:kept] > 0
    sums = np.bincount(level, counts[:kept], _KL_LEVELS)
    filled = np.bincount(level, held, _KL_LEVELS)
    q = np.where(held, (sums / np.maximum(filled, 1))[level], 0.0)
    if q.sum() == 0.0:
        return np.inf
    p, q = p / total, q / q.sum()
    both = p > 0
    return float((p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))).sum())
