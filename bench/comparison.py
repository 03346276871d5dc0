"""Two speed runs of one network: which engines became slower or broke, and which changes are only noise.

Engines are compared by how many times faster than the reference of their own run they were, because the two runs may
come from machines, or from hours, of other speed. What is noise is told from the rounds: in each, engine and reference
took turns, so rounds are drawn again with replacement, both together, and the change is looked at over the draws.
Source: percentile bootstrap, Efron 1979.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from segmenter.errors import DataError
from segmenter_bench.placement import comparable, settled
from segmenter_bench.runs import wide_console

DRAWS = 2000
COVERED = 0.95  # of the draws lie inside the interval
FEWEST_ROUNDS = 3  # two can be drawn in four ways: no interval

Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """An engine's speed-up over the reference in the candidate run over that in the baseline run, and its interval."""

    engine: str
    batch: int
    region: str
    baseline: float  # speed-up in the baseline run
    candidate: float
    low: float  # of the change, `candidate / baseline`
    high: float
    tolerance: float

    @property
    def change(self) -> float:
        return self.candidate / self.baseline

    @property
    def verdict(self) -> str:
        """slower or faster when the whole interval is past the tolerance, same when it is within, else unsure."""
        slowest, fastest = 1.0 / (1.0 + self.tolerance), 1.0 + self.tolerance
        if self.high < slowest:
            return "slower"
        if self.low > fastest:
            return "faster"
        return "same" if self.low >= slowest and self.high <= fastest else "unsure"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: changes of engines in both runs, and a line for each that is in one alone.

    broken: a line for each that was timed in the baseline and failed in the candidate. unlike: a line for each whose
    timings do not compare, as the cores were not equally far apart in any.
    """

    changes: list[Change]
    apart: list[str]
    broken: list[str]
    unlike: list[str]

    @property
    def slower(self) -> list[Change]:
        return [one for one in self.changes if one.verdict == "slower"]


def compare(baseline: dict[str, Any], candidate: dict[str, Any], tolerance: float, seed: int = 0) -> Comparison:
    """Compare two throughput runs engine by engine.

    tolerance: share by which a speed-up may change, 0.1 for 10 %.
    Raises DataError for runs of another kind, network, size, reference or number of threads, with too few rounds, or
    without their reference.
    """
    named = ((baseline, "baseline"), (candidate, "candidate"))
    for run, which in named:
        if run["kind"] != "throughput":
            raise DataError(f"{which}: a {run['kind']} run; wanted the JSON of bench-throughput")
    for key, told in (("name", "network"), ("height", "height"), ("width", "width")):
        _require_equal(told, baseline["model"].get(key), candidate["model"].get(key))
    for key in ("reference", "threads"):
        _require_equal(key, baseline["settings"].get(key), candidate["settings"].get(key))
    sides = [_Side.of(run, which) for run, which in named]
    generator = np.random.default_rng(seed)
    names = list(dict.fromkeys((*sides[0].speedups, *sides[1].speedups)))
    changes, apart, broken, unlike = [], [], [], []
    for name in names:
        engine, batch, region = name
        mine, theirs = (side.speedups.get(name) for side in sides)
        if mine is None or theirs is None:
            missing = sides[mine is not None]
            reason = missing.failed.get(name)
            if reason is not None and missing is sides[1]:
                broken.append(f"{engine}, batch {batch}: {reason}")
            else:
                apart.append(f"{engine}, batch {batch}: not timed in the {missing.name}")
            continue
        pairs = itertools.product(mine, theirs)
        pair = next((pair for pair in pairs if comparable(*(one.core_to_core_ns for one in pair))), None)
        if pair is None:
            unlike.append(
                f"{engine}, batch {batch}: not compared, a cache line took {_distances(mine)} from core to core in the"
                f" baseline and {_distances(theirs)} in the candidate"
            )
            continue
        draws = [one.draws(generator) for one in pair]
        low, high = np.quantile(draws[1] / draws[0], (0.5 - COVERED / 2, 0.5 + COVERED / 2))
        values = (pair[0].value, pair[1].value, float(low), float(high))
        changes.append(Change(engine, batch, region, *values, tolerance))
    return Comparison(changes, apart, broken, unlike)


def _distances(found: Sequence["_Speedup"]) -> str:
    return " or ".join(f"{one.core_to_core_ns:.0f} ns" for one in found if one.core_to_core_ns) or "now more, now less"


def _require_equal(what: str, mine: object, theirs: object) -> None:
    if mine != theirs:
        raise DataError(f"{what} {mine!r} in the baseline and {theirs!r} in the candidate: such runs do not compare")


@dataclass(frozen=True)
class _Speedup:
    """Milliseconds of every round, the median call, of the reference and of an engine."""

    reference: np.ndarray
    engine: np.ndarray
    core_to_core_ns: float | None

    @property
    def value(self) -> float:
        return float(np.median(self.reference / self.engine))

    def draws(self, generator: np.random.Generator) -> np.ndarray:
        """The speed-up over `DRAWS` samples of the rounds, [DRAWS]."""
        ratios = self.reference / self.engine
        chosen = generator.integers(0, len(ratios), (DRAWS, len(ratios)))
        return np.median(ratios[chosen], axis=1)


@dataclass(frozen=True)
class _Side:
    name: str
    speedups: dict[tuple[str, int, str], list[_Speedup]]  # one for each distance of the cores
    failed: dict[tuple[str, int, str], str]  # why

    @classmethod
    def of(cls, run: dict[str, Any], name: str) -> "_Side":
        reference = run["settings"].get("reference")
        timed = [row for row in run["rows"] if row["status"] == "ok" and row.get("rounds_ms")]
        references = {(row["batch"], row["region"]): row for row in timed if row["engine"] == reference}
        if not references:
            raise DataError(f"{name}: {reference}, which speeds are measured against, was not timed in it")
        found = {}
        for row in timed:
            theirs = references.get((row["batch"], row["region"]))
            if row["engine"] == reference or theirs is None:
                continue
            rounds = len(row["rounds_ms"])
            if rounds < FEWEST_ROUNDS or len(theirs["rounds_ms"]) != rounds:
                raise DataError(
                    f"{name}: {row['engine']} has {rounds} rounds; wanted at least {FEWEST_ROUNDS} to tell a change"
                    " from noise: time again with --rounds 6"
                )
            found[row["engine"], row["batch"], row["region"]] = [
                _Speedup(_rounds(reference_row), _rounds(mine), mine.get("core_to_core_ns"))
                for mine, reference_row in zip(settled(row), settled(theirs), strict=True)
            ]
        failed = {
            (row["engine"], row["batch"], row["region"]): str(row.get("reason"))
            for row in run["rows"]
            if row["status"] == "failed"
        }
        return cls(name, found, failed)


def _rounds(row: Row) -> np.ndarray:
    return np.array([float(np.median(times)) for times in row["rounds_ms"]])


def show(found: Comparison) -> None:
    """Print a comparison as a table on stdout."""
    console = wide_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("engine", "region"):
        table.add_column(title, no_wrap=True)
    for title in ("batch", "baseline x", "candidate x", "change", f"{COVERED:.0%} interval"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in found.changes:
        cells = [f"{value:.2f}" for value in (one.baseline, one.candidate, one.change)]
        cells.append(f"{one.low:.2f} to {one.high:.2f}")
        style = {"slower": "red", "faster": "green"}.get(one.verdict)
        table.add_row(one.engine, one.region, str(one.batch), *cells, one.verdict, style=style)
    console.print(table)
    for line in (*found.apart, *found.unlike):
        console.print(line, style="yellow", soft_wrap=True)
    for line in found.broken:
        console.print(line, style="red", soft_wrap=True)
