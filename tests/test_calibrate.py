"""Histograms that grow, and the ranges each method takes from them."""

import numpy as np
import pytest
import torch

from segmenter_engines.formats import FP8, INT8, UINT8
from segmenter_engines.histogram import Histogram, Range


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@pytest.fixture(scope="module")
def bulk() -> np.ndarray:
    """Values as activations have them: a bulk, more to one side, and an outlier."""
    values = np.random.default_rng(0).normal(0.5, 1.0, 400_000).astype(np.float32)
    values[0] = 20.0
    return values


def test_a_histogram_grows_without_losing_a_value(bulk: np.ndarray) -> None:
    small, large = bulk[1:] * 0.01, bulk
    grown, whole = filled(small, large), filled(large, small)
    assert grown.counts.size == whole.counts.size
    assert grown.counts.sum() == whole.counts.sum() == small.size + large.size
    assert grown.seen == whole.seen == Range(float(min(small.min(), large.min())), 20.0)
    assert grown.reach < 2 * 20.0
    # where the values lie is known to a bin, whatever came first
    moved = filled(small, np.array([20.0], np.float32))
    width = 2 * moved.reach / moved.counts.size
    mean = (moved.centres * moved.counts).sum() / moved.counts.sum()
    assert abs(mean - np.append(small, 20.0).mean(dtype=np.float64)) < 0.5 * width
    for percentile in (90.0, 99.9):
        exact = np.percentile(np.concatenate((small, large)), percentile)
        for histogram in (grown, whole):
            assert abs(histogram.percentile(percentile).high - exact) <= 4 * histogram.reach / histogram.counts.size


def test_zeros_alone_have_a_range_and_a_scale() -> None:
    histogram = filled(np.zeros((2, 3), np.float32))
    for span in (histogram.seen, histogram.percentile(99.0), histogram.entropy(), histogram.mse(INT8)):
        assert span == Range(0.0, 0.0)
        assert INT8.fitted(span.low, span.high)[0] > 0


@pytest.mark.parametrize("form", [INT8, UINT8, FP8], ids=["int8", "uint8", "fp8"])
def test_mse_loses_least_of_all_methods(bulk: np.ndarray, form) -> None:
    histogram = filled(bulk)
    x = torch.from_numpy(bulk)

    def error(span: Range) -> float:
        scale, zero = form.fitted(span.low, span.high)
        return float((form.fake(x, scale, zero) - x).double().square().mean())

    least = error(histogram.mse(form))
    others = [histogram.seen, histogram.entropy(), histogram.percentile(99.9), histogram.percentile(99.999)]
    assert all(least <= 1.01 * error(span) for span in others)
    if form is INT8:  # its steps are all the same, and half of them lie where nothing is
        assert least < 0.7 * error(histogram.seen)


def test_entropy_and_percentile_clip_the_tail_and_never_beyond_what_was_seen(bulk: np.ndarray) -> None:
    histogram = filled(bulk)
    for span in (histogram.entropy(), histogram.percentile(99.9)):
        assert histogram.seen.low <= span.low < 0.0
        assert 2.0 < span.high < 20.0
    positive = filled(np.abs(bulk))
    for span in (positive.entropy(), positive.percentile(99.9), positive.mse(UINT8)):
        assert span.low == 0.0  # zero stays exactly representable


def test_numbers_are_those_of_the_kernels() -> None:
    """Ties to even, saturation, and the same scale: what `segmenter_kernels.quantize` documents."""
    x = torch.tensor([0.5, 1.5, -2.5, 126.6, 400.0, -400.0])
    assert INT8.encode(x, 1.0).tolist() == [0, 2, -2, 127, 127, -128]
    assert UINT8.encode(x, 1.0, 10).tolist() == [10, 12, 8, 137, 255, 0]
    assert FP8.encode(torch.tensor([17.0, 19.0, 500.0, -1e9]), 1.0).tolist() == [16.0, 20.0, 448.0, -448.0]
