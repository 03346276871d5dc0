"""Activation ranges: what the inputs of the quantised layers look like on real images."""

from collections.abc import Iterable, Sequence
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
    del graph.graph.output[:]
    wanted = list(dict.fromkeys(tensors))
    watched = wanted if method == "percentile" else [_reduce(graph, name, kind) for name in wanted for kind in _KINDS]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    found: dict[str, Range] = {}
    for batch in batches:
        values = session.run(watched, {feed: batch})
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


_KINDS = ("ReduceMin", "ReduceMax")


def _reduce(graph: onnx.ModelProto, name: str, kind: str) -> str:
    output = f"{name}/{kind}"
    graph.graph.node.append(onnx.helper.make_node(kind, [name], [output], keepdims=0))
    return output


def _clipped(values: np.ndarray, percentile: float) -> Range:
    low, high = np.percentile(values.astype(np.float32), [100.0 - percentile, percentile])
    return Range(float(low), float(high))
