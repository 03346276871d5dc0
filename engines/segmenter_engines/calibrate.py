"""Activation ranges: what the inputs of the quantised layers look like on real images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime

from segmenter.errors import EngineError
from segmenter_engines.sessions.onnxruntime import session_options

Method = Literal["minmax", "percentile"]


@dataclass(frozen=True)
class Range:
    """Smallest and largest value a tensor takes, zero included."""

    low: float
    high: float

    def union(self, other: "Range") -> "Range":
        return Range(min(self.low, other.low), max(self.high, other.high))


def ranges(
    path: Path,
    tensors: Sequence[str],
    batches: Iterable[np.ndarray],
    method: Method = "minmax",
    percentile: float = 99.99,
    threads: int | None = None,
) -> dict[str, Range]:
    """Range of each named float tensor of a graph over batches of its input, run in ONNX Runtime.

    batches: float32 [B, 3, H, W], normalised. `minmax` spans everything seen; `percentile` clips both tails of each
    image at that percentile and spans the images.
    Raises EngineError when there is no batch.
    """
    graph = onnx.load(path)
    wanted = list(dict.fromkeys(tensors))
    watched = wanted if method == "percentile" else [_reduce(graph, name, kind) for name in wanted for kind in _KINDS]
    found: dict[str, Range] = {}
    for values in _watch(graph, watched, batches, threads):
        if method == "minmax":
            seen = [Range(float(low), float(high)) for low, high in zip(values[::2], values[1::2], strict=True)]
        else:
            seen = [_clipped(value, percentile) for value in values]
        for name, one in zip(wanted, seen, strict=True):
            # zero must be exactly representable, so it is always inside
            found[name] = one.union(found.get(name, Range(0.0, 0.0)))
    if not found:
        raise EngineError("no calibration images; pass at least one, typically 16 to 64")
    return found


def channel_peaks(
    path: Path, tensors: Sequence[str], batches: Iterable[np.ndarray], threads: int | None = None
) -> dict[str, np.ndarray]:
    """Largest magnitude of each channel of the named tensors [B, N, C] over the batches, float32 [C]."""
    graph = onnx.load(path)
    wanted = list(dict.fromkeys(tensors))
    axes = onnx.numpy_helper.from_array(np.array([0, 1], np.int64), "peaks/axes")
    graph.graph.initializer.append(axes)
    for name in wanted:
        graph.graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}/Abs"]))
    watched = [_reduce(graph, f"{name}/Abs", "ReduceMax", axes.name) for name in wanted]
    peaks = [np.stack(values) for values in zip(*_watch(graph, watched, batches, threads), strict=True)]
    return {name: values.max(axis=0).astype(np.float32) for name, values in zip(wanted, peaks, strict=True)}


def _watch(
    graph: onnx.ModelProto, watched: list[str], batches: Iterable[np.ndarray], threads: int | None
) -> Iterator[list[np.ndarray]]:
    """Values of the `watched` tensors for each batch."""
    del graph.graph.output[:]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    for batch in batches:
        yield session.run(watched, {feed: batch})


_KINDS = ("ReduceMin", "ReduceMax")


def _reduce(graph: onnx.ModelProto, name: str, kind: str, axes: str = "") -> str:
    output = f"{name}/{kind}"
    graph.graph.node.append(onnx.helper.make_node(kind, [name, axes] if axes else [name], [output], keepdims=0))
    return output


def _clipped(values: np.ndarray, percentile: float) -> Range:
    # a prime step keeps the sample from lining up with channels; a quarter of a million values place the 99.99th well
    step = next(prime for prime in _STEPS if values.size <= prime * _SAMPLE or prime == _STEPS[-1])
    low, high = np.percentile(values.ravel()[::step].astype(np.float32), [100.0 - percentile, percentile])
    return Range(float(low), float(high))


_SAMPLE = 1 << 18
_STEPS = (1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
