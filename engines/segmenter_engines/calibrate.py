"""Activation ranges: what the inputs of the quantised layers look like on real images."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from segmenter.errors import EngineError
from segmenter_engines.cut import cut
from segmenter_engines.formats import UINT8, Format
from segmenter_engines.histogram import Histogram
from segmenter_engines.sessions.onnxruntime import session_options
from segmenter_engines.steps import Range
from segmenter_engines.widen import widened

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)


def ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[np.ndarray],
    method: Method = "minmax",
    *,
    percentile: float = 99.99,
    form: Format = UINT8,
    real: int = TensorProto.FLOAT,
    threads: int | None = None,
) -> dict[str, Range]:
    """Range of each named float tensor of a graph over batches of its input, run in ONNX Runtime in float32.

    batches: one or more of what the graph takes, a batch an image. `minmax` spans everything seen; the others clip
    what one pass over the images has counted: `percentile` both tails, `entropy` and `mse` where the least is lost,
    `mse` to `form` in a graph of element type `real`.
    Raises EngineError when an activation is no number.
    """
    wanted = list(dict.fromkeys(tensors))
    if method == "minmax":
        return _spans(model, wanted, batches, threads)
    histograms = {name: Histogram() for name in wanted}
    for values in _watch(model, wanted, batches, threads):
        for name, value in zip(wanted, values, strict=True):
            _require_numbers(name, float(value.min()), float(value.max()))
            histograms[name].add(value)
    if method == "percentile":
        return {name: histogram.percentile(percentile) for name, histogram in histograms.items()}
    if method == "entropy":
        return {name: histogram.entropy() for name, histogram in histograms.items()}
    return {name: histogram.mse(form, real) for name, histogram in histograms.items()}


def channel_peaks(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray], threads: int | None = None
) -> dict[str, np.ndarray]:
    """Largest magnitude of each channel of the named tensors [B, N, C] over the batches, float32 [C]."""
    wanted = list(dict.fromkeys(tensors))
    graph = _copy(model)
    axes = onnx.numpy_helper.from_array(np.array([0, 1], np.int64), "peaks/axes")
    graph.graph.initializer.append(axes)
    for name in wanted:
        graph.graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}/Abs"]))
    watched = [_reduce(graph, f"{name}/Abs", "ReduceMax", axes.name) for name in wanted]
    peaks = [np.stack(values) for values in zip(*_watch(graph, watched, batches, threads), strict=True)]
    return {name: values.max(axis=0).astype(np.float32) for name, values in zip(wanted, peaks, strict=True)}


def _spans(
    model: onnx.ModelProto, wanted: list[str], batches: Iterable[np.ndarray], threads: int | None
) -> dict[str, Range]:
    graph = _copy(model)
    # the sum because the other two pass over a NaN
    watched = [_reduce(graph, name, kind) for name in wanted for kind in ("ReduceMin", "ReduceMax", "ReduceSum")]
    found: dict[str, Range] = {}
    for values in _watch(graph, watched, batches, threads):
        for name, low, high, total in zip(wanted, values[::3], values[1::3], values[2::3], strict=True):
            _require_numbers(name, float(low), float(high), float(total))
            # zero must be exactly representable, so it is always inside
            found[name] = Range(float(low), float(high)).union(found.get(name, Range(0.0, 0.0)))
    return found


def _watch(
    model: onnx.ModelProto, watched: list[str], batches: Iterable[np.ndarray], threads: int | None
) -> Iterator[list[np.ndarray]]:
    """Values of the `watched` tensors for each batch."""
    wide = widened(model)
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched)
    cut(wide.graph, watched)
    session = onnxruntime.InferenceSession(
        wide.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    for batch in batches:
        yield session.run(watched, {feed: batch})


def _require_numbers(name: str, *values: float) -> None:
    if not np.isfinite(values).all():
        raise EngineError(
            f"activation {name}: values that are no numbers on a calibration image; the checkpoint's weights are"
            " broken, see `segmenter evaluate`"
        )


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _reduce(graph: onnx.ModelProto, name: str, kind: str, axes: str = "") -> str:
    output = f"{name}/{kind}"
    graph.graph.node.append(onnx.helper.make_node(kind, [name, axes] if axes else [name], [output], keepdims=0))
    return output
