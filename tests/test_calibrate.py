"""Histograms that grow, the ranges each method takes from them, and which images they are made of."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto

from segmenter.errors import EngineError
from segmenter.preprocess import normalize
from segmenter_engines.calibrate import ranges
from segmenter_engines.formats import FP8, INT8, UINT8
from segmenter_engines.histogram import Histogram
from segmenter_engines.manifest import read_manifest
from segmenter_engines.qdq import linears
from segmenter_engines.recipe import calibration_images
from segmenter_engines.steps import Range, steps_over
from tests.small_engines import pictures


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
    def error(span: Range) -> float:
        x = torch.from_numpy(bulk)
        return float((steps_over(span, form, TensorProto.FLOAT).fake(x) - x).double().square().mean())

    histogram = filled(bulk)
    least = error(histogram.mse(form))
    others = [histogram.seen, histogram.entropy(), histogram.percentile(99.9), histogram.percentile(99.999)]
    assert all(least <= 1.01 * error(span) for span in others)
    if form is not FP8:  # their steps are all the same, and two outliers take most of them
        bulk = np.append(bulk, np.float32(-20.0))
        wide = filled(bulk)
        assert error(wide.mse(form)) < 0.7 * error(wide.seen)


@pytest.mark.parametrize("real", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("spread", [0.3, 1.0, 1.5, 4.0])
def test_mse_is_that_of_the_numbers_a_graph_holds(spread: float, real: int) -> None:
    """What GELU gives is shifted before it becomes int8: its steps are those of the whole range, not of twice it."""
    x = F.gelu(spread * torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    histogram = filled(x.numpy())

    def error(span: Range) -> float:
        return float((steps_over(span, INT8, real).fake(x) - x).double().square().mean())

    least, seen = error(histogram.mse(INT8, real)), histogram.seen
    assert least <= error(seen)
    shares = np.linspace(0.02, 1.0, 50)
    assert least <= 1.02 * min(
        error(Range(low * seen.low, high * seen.high)) for low in shares[9::10] for high in shares
    )


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


def test_ranges_span_what_was_seen(engine_folder):
    path = engine_folder / "model.fp32.onnx"
    model = onnx.load(path)
    names = [layer.activation for layer in linears(model.graph)]
    preprocess = read_manifest(path).preprocess
    one, two = ([normalize(picture, preprocess).numpy()] for picture in pictures(2))
    alone, other, both = (ranges(model, names, batches) for batches in (one, two, one + two))
    clipped = ranges(model, names, one, "percentile", percentile=99.0)
    for name in names:
        assert both[name] == alone[name].union(other[name])
        assert alone[name].low <= clipped[name].low <= 0.0 <= clipped[name].high <= alone[name].high
        assert clipped[name].high - clipped[name].low < alone[name].high - alone[name].low


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_other_methods_clip_what_was_seen(engine_folder, method):
    path = engine_folder / "model.fp32.onnx"
    model = onnx.load(path)
    names = [layer.activation for layer in linears(model.graph)]
    batches = [normalize(picture, read_manifest(path).preprocess).numpy() for picture in pictures(2)]
    seen, clipped = ranges(model, names, batches), ranges(model, names, batches, method)
    for name in names:
        assert seen[name].low <= clipped[name].low <= 0.0 <= clipped[name].high <= seen[name].high
    assert any(clipped[name] != seen[name] for name in names)  # this network has few outliers


def test_activations_that_are_no_numbers_are_refused(engine_folder):
    path = engine_folder / "model.fp32.onnx"
    model = onnx.load(path)
    names = [layer.activation for layer in linears(model.graph)][:1]
    batch = np.full((1, 3, 56, 72), np.nan, np.float32)
    for method in ("minmax", "mse"):
        with pytest.raises(EngineError, match=rf"activation {names[0]}: values that are no numbers"):
            ranges(model, names, [batch], method)


class Samples(list):
    classes, palette, ignore, channels = (), (), 255, 3


def test_calibration_images_are_spread_or_drawn_by_a_seed():
    samples = Samples(SimpleNamespace(image=np.full((2, 2, 3), index, np.uint8)) for index in range(10))

    def chosen(count, seed=None):
        return [int(image[0, 0, 0]) for image in calibration_images(samples, count, (2, 2), seed)]

    assert chosen(4) == [0, 2, 5, 7]
    assert chosen(20) == list(range(10))
    assert chosen(4, 1) == chosen(4, 1) != chosen(4, 2)
    assert len(set(chosen(4, 1))) == 4
    for arguments, message in (((0,), "0 calibration images"), ((4, -1), "seed -1: wanted 0 or more")):
        with pytest.raises(EngineError, match=message):
            chosen(*arguments)
