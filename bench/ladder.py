"""The ablation ladder: from the official way to the fastest engine one change at a time, and what each change gained.

All rungs are engines of one run and took turns in it. A gain is the median over rounds of how much faster a rung was
than the one it builds on, so a machine that slows down for a while moves it little; of few rounds it is the ratio of
the images per second, as in the tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from segmenter_bench.sections import ENOUGH_ROUNDS, Section, by_reason
from segmenter_bench.sheets import DASH, Cell, Sheet, number, quantity

Row = dict[str, Any]


@dataclass(frozen=True)
class Rung:
    """An engine, and how it differs from the rung before; over: the rung it builds on instead."""

    engine: str
    change: str
    over: str | None = None


_PYTORCH = (
    Rung("official", "explicit softmax attention, logits of every class at image resolution, argmax"),
    Rung("official-channels-last", "logits in the memory layout that PyTorch upsamples soonest"),
    Rung("eager", "attention by scaled_dot_product_attention"),
    Rung("eager-fused-labels", "upsample and argmax in one pass: logits are never held"),
)
LADDERS: dict[str, tuple[Rung, ...]] = {
    "on a CPU, to OpenVINO": (
        *_PYTORCH,
        Rung("openvino-fp32", "the network as one fused graph in OpenVINO"),
        Rung("openvino-bf16", "bf16"),
        Rung("openvino-int8", "int8 linear layers"),
    ),
    "on a CPU, to ONNX Runtime": (
        *_PYTORCH,
        Rung("onnxruntime-fp32", "the network as one fused graph in ONNX Runtime"),
        Rung("onnxruntime-int8", "int8 linear layers"),
    ),
    "on a GPU": (
        Rung("gpu-explicit", "PyTorch in fp16: explicit softmax attention, logits of every class at image resolution"),
        Rung("gpu-sdpa", "attention by scaled_dot_product_attention"),
        Rung("gpu-kernels", "our fused kernels, from uint8 pixels on"),
        Rung("gpu-kernels-labels", "upsample and argmax in one kernel: logits are never written"),
        Rung("triton-fp16", "all kernels in one CUDA graph; as an engine, with pinned memory and asynchronous copies"),
        Rung("triton-int8", "int8 linear layers"),
        Rung("triton-fp8", "fp8 linear layers", over="triton-fp16"),
    ),
}


@dataclass(frozen=True)
class Step:
    """A rung as measured; `row` is None, and `reason` says why, where it was not.

    gain: times the rung `over`, with quartiles where there were enough rounds; total: times the first rung; above: the
    rung before it.
    """

    rung: Rung
    row: Row | None
    reason: str | None
    over: str | None = None
    gain: float | None = None
    spread: tuple[float, float] | None = None
    total: float | None = None
    above: str | None = None

    @property
    def apart(self) -> str:
        """Over which rung it is, where that is not the one before it."""
        return f"over {self.over}" if self.over != self.above else ""


def climb(rungs: Sequence[Rung], section: Section) -> list[Step]:
    """The rungs as one speed run measured them at its smallest batch: that with most of them, the newest of several."""
    found = [_labelled(run) for run in section.speeds]
    names = [rung.engine for rung in rungs]
    rows = max(reversed(found), key=lambda rows: sum(map(_measured, map(rows.get, names))), default={})
    steps: list[Step] = []
    measured: list[Row] = []
    above: str | None = None
    for rung in rungs:
        row = rows.get(rung.engine)
        if row is None or not _measured(row):
            reason = row.get("reason") if row else section.unavailable.get(rung.engine)
            steps.append(Step(rung, None, reason or "not among the engines of this run"))
            above = rung.engine
            continue
        below = next((one for one in measured if one["engine"] == rung.over), measured[-1] if measured else None)
        if below is None:
            steps.append(Step(rung, row, None, total=1.0))
        else:
            gain, spread = _times(below, row)
            total, _ = _times(measured[0], row)
            steps.append(Step(rung, row, None, below["engine"], gain, spread, total, above))
        measured.append(row)
        above = rung.engine
    return steps


def _labelled(run: dict[str, Any]) -> dict[str, Row]:
    """Rows of a run at its smallest batch, from images to labels, by engine."""
    rows = [row for row in run["rows"] if row.get("region", "labels") == "labels"]
    smallest = min((row["batch"] for row in rows), default=None)
    return {row["engine"]: row for row in rows if row["batch"] == smallest}


def _measured(row: Row | None) -> bool:
    return row is not None and row["status"] == "ok" and bool(row.get("rounds_ms"))


def _times(slow: Row, fast: Row) -> tuple[float, tuple[float, float] | None]:
    """How many times faster one was than another, with quartiles over rounds where there were enough of them."""
    pairs = zip(slow["rounds_ms"], fast["rounds_ms"], strict=False)
    each = [median(theirs) / median(mine) for theirs, mine in pairs]
    if len(each) < ENOUGH_ROUNDS:
        return fast["timing"]["images_per_s"] / slow["timing"]["images_per_s"], None
    low, middle, high = quantiles(each, n=4, method="inclusive")
    return middle, (low, high)


def climbs(section: Section) -> dict[str, list[Step]]:
    """The ladders with at least two measured rungs, by what they are called."""
    found = {name: climb(rungs, section) for name, rungs in LADDERS.items()}
    return {name: steps for name, steps in found.items() if sum(one.row is not None for one in steps) > 1}


def unmeasured(section: Section) -> dict[str, list[str]]:
    """Rungs of any ladder that were not measured, by the reason."""
    if section.of("throughput") is None:
        return {}
    steps = [step for rungs in LADDERS.values() for step in climb(rungs, section)]
    return by_reason({step.rung.engine: step.reason for step in steps if step.reason is not None})


def sheets(section: Section) -> list[Sheet]:
    """The ladders as tables."""
    found = []
    for name, steps in climbs(section).items():
        lines = [
            (
                Cell(step.rung.engine),
                Cell(step.rung.change),
                Cell(quantity(step.row["timing"]["images_per_s"], 3) if step.row else DASH, step.row),
                Cell(f"{number(step.gain, '.2f')} {step.apart}".strip(), step.row),
                Cell(number(step.total, ".2f"), step.row),
            )
            for step in steps
        ]
        heads = ("rung", "what changes", "images/s", "x the rung before", "x the first")
        missing = [f"`{step.rung.engine}`: {step.reason}" for step in steps if step.reason]
        found.append(Sheet(f"{section.name}: the ladder {name}", "; ".join(missing), heads, lines))
    return found
