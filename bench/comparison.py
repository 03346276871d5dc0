"""Two speed runs of one network: which engines became slower or broke, and which changes are only noise.

Engines are compared by how many times faster than the reference of their own run they were, because the two runs may
come from machines, or from hours, of other speed; by their own milliseconds where the reference ran on another device,
which on one machine alone means something. What is noise is told from the rounds: in each, engine and reference took
turns, so rounds are drawn again with replacement, both together, and the change is looked at over the draws. That is
the noise within a run: what moves a whole run, as another placement of its memory does, is in no interval.
Source: percentile bootstrap, Efron 1979.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segmenter.errors import DataError
from segmenter.option import require
from segmenter_bench.circumstances import differences, same_machine
from segmenter_bench.placement import comparable, settled

DRAWS = 2000
COVERED = 0.95  # of the draws lie inside the interval
FEWEST_ROUNDS = 3  # two can be drawn in four ways: no interval
OTHER_REFERENCE = "unsure: the reference changed"

Row = dict[str, Any]
Name = tuple[str, int, str]  # engine, batch, region


def require_tolerance(tolerance: float) -> None:
    """Raises ConfigError for a tolerance that no change could be told by."""
    require(0.0 < tolerance <= 10.0, "--tolerance", tolerance, "above 0 and at most 10; 10 % is 0.1")


@dataclass(frozen=True)
class Change:
    """An engine's speed in the candidate run over that in the baseline run, and the interval of their rounds.

    baseline, candidate: times the reference, or calls a millisecond where the reference ran on another device.
    """

    engine: str
    batch: int
    region: str
    baseline: float
    candidate: float
    low: float  # of the change, `candidate / baseline`
    high: float
    tolerance: float
    ms: tuple[float, float]  # median call of the engine in either run
    reference_ms: tuple[float, float] | None  # of the reference; None where that ran on another device
    one_machine: bool = False

    @property
    def change(self) -> float:
        return self.candidate / self.baseline

    @property
    def verdict(self) -> str:
        """slower or faster when the whole interval is past the tolerance, same when it is within, else unsure.

        Unsure as well where only the reference moved, on a machine that is the same: it is not the engine that changed.
        """
        slowest, fastest = 1.0 / (1.0 + self.tolerance), 1.0 + self.tolerance
        own = self.ms[0] / self.ms[1]
        # of another machine, the reference is expected to have another speed
        reference = self.reference_ms[0] / self.reference_ms[1] if self.reference_ms and self.one_machine else 1.0
        if self.high < slowest:
            return OTHER_REFERENCE if reference > fastest and own >= slowest else "slower"
        if self.low > fastest:
            return OTHER_REFERENCE if reference < slowest and own <= fastest else "faster"
        return "same" if self.low >= slowest and self.high <= fastest else "unsure"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: changes of engines in both runs, and a line for each that is in one alone.

    broken: a line for each that was timed in the baseline and failed, or could not be opened, in the candidate. unlike:
    a line for each whose timings do not compare. differences: what else differs between the runs.
    """

    reference: str
    changes: list[Change]
    apart: list[str]
    broken: list[str]
    unlike: list[str]
    differences: list[str]

    @property
    def slower(self) -> list[Change]:
        return [one for one in self.changes if one.verdict == "slower"]

    @property
    def unsure(self) -> list[Change]:
        return [one for one in self.changes if one.verdict.startswith("unsure")]


def compare(baseline: dict[str, Any], candidate: dict[str, Any], tolerance: float, seed: int = 0) -> Comparison:
    """Compare two throughput runs engine by engine.

    tolerance: share by which a speed may change, 0.1 for 10 %.
    Raises DataError for runs of another kind, network, size, reference, number of threads or timed region, with too few
    rounds, or without their reference.
    """
    _require_alike(baseline, candidate)
    reference, one_machine = str(baseline["settings"].get("reference")), same_machine(baseline, candidate)
    mine, theirs = _Side.of(baseline, "baseline"), _Side.of(candidate, "candidate")
    generator = np.random.default_rng(seed)
    found = Comparison(reference, [], [], [], [], differences(baseline, candidate))
    for name in dict.fromkeys((*mine.speeds, *theirs.speeds)):
        told = f"{name[0]}, batch {name[1]}"
        if name not in theirs.speeds:
            reason = theirs.why_missing(name)
            (found.apart if reason is None else found.broken).append(
                f"{told}: {reason or 'not timed in the candidate'}"
            )
        elif name not in mine.speeds:
            found.apart.append(f"{told}: not timed in the baseline")
        else:
            pair = _pair(mine.speeds[name], theirs.speeds[name], reference, one_machine)
            if isinstance(pair, str):
                found.unlike.append(f"{told}: not compared, {pair}")
            else:
                found.changes.append(_change(name, *pair, tolerance, generator, one_machine))
    return found


def _require_alike(baseline: dict[str, Any], candidate: dict[str, Any]) -> None:
    for run, which in ((baseline, "baseline"), (candidate, "candidate")):
        if run["kind"] != "throughput":
            raise DataError(f"{which}: a {run['kind']} run; wanted the JSON of bench-throughput")
    mine, theirs = baseline["model"], candidate["model"]
    for key, told in (("name", "network"), ("height", "height"), ("width", "width"), ("trained", "trained")):
        _require_equal(told, mine.get(key), theirs.get(key))
    _require_equal("number of classes", *(len(model.get("classes", ())) for model in (mine, theirs)))
    for key in ("reference", "threads"):
        _require_equal(key, baseline["settings"].get(key), candidate["settings"].get(key))
    timed, then = baseline.get("timed", {}), candidate.get("timed", {})
    for region in timed.keys() & then.keys():  # not known of runs of before it was written
        _require_equal(f"timed as {region}:", timed[region], then[region])


def _require_equal(what: str, mine: object, theirs: object) -> None:
    if mine != theirs:
        raise DataError(f"{what} {mine!r} in the baseline and {theirs!r} in the candidate: such runs do not compare")


@dataclass(frozen=True)
class _Speed:
    """Milliseconds of every round's median call, of an engine and of the reference, and of the median of all calls."""

    engine: np.ndarray
    reference: np.ndarray
    ms: float
    reference_ms: float
    device: str | None
    reference_device: str | None
    core_to_core_ns: float | None
    alone: bool = False  # whether its own milliseconds count, not the reference's over them

    @classmethod
    def of(cls, row: Row, reference: Row, devices: tuple[str | None, str | None]) -> "_Speed":
        ms, reference_ms = (float(np.median([*itertools.chain(*one["rounds_ms"])])) for one in (row, reference))
        return cls(_rounds(row), _rounds(reference), ms, reference_ms, *devices, row.get("core_to_core_ns"))

    @property
    def across(self) -> bool:
        """Whether the reference ran on another device: their ratio is that of two devices, and not of the engine."""
        return self.device != self.reference_device

    @property
    def of_rounds(self) -> np.ndarray:
        return (1.0 if self.alone else self.reference) / self.engine

    @property
    def value(self) -> float:
        return float(np.median(self.of_rounds))

    def draws(self, generator: np.random.Generator) -> np.ndarray:
        """The speed over `DRAWS` samples of the rounds, [DRAWS]."""
        speeds = self.of_rounds
        chosen = generator.integers(0, len(speeds), (DRAWS, len(speeds)))
        return np.median(speeds[chosen], axis=1)


def _rounds(row: Row) -> np.ndarray:
    return np.array([float(np.median(times)) for times in row["rounds_ms"]])


def _pair(
    mine: Sequence[_Speed], theirs: Sequence[_Speed], reference: str, one_machine: bool
) -> tuple[_Speed, _Speed] | str:
    """What of an engine compares between two runs, or why nothing does."""
    pairs = itertools.product(mine, theirs)
    pair = next((pair for pair in pairs if comparable(*(one.core_to_core_ns for one in pair))), None)
    if pair is None:
        return (
            f"a cache line took {_distances(mine)} from core to core in the baseline and {_distances(theirs)} in the"
            " candidate"
        )
    across = next((one for one in pair if one.across), None)
    if across is None:
        return pair
    if one_machine and pair[0].device == pair[1].device:
        return replace(pair[0], alone=True), replace(pair[1], alone=True)
    return (
        f"ran on {across.device}, {reference} on {across.reference_device}: no ratio, and the milliseconds are of"
        " different machines"
    )


def _distances(found: Sequence[_Speed]) -> str:
    return " or ".join(f"{one.core_to_core_ns:.0f} ns" for one in found if one.core_to_core_ns) or "now more, now less"


def _change(
    name: Name, mine: _Speed, theirs: _Speed, tolerance: float, generator: np.random.Generator, one_machine: bool
) -> Change:
    draws = [one.draws(generator) for one in (mine, theirs)]
    low, high = np.quantile(draws[1] / draws[0], (0.5 - COVERED / 2, 0.5 + COVERED / 2))
    reference_ms = None if mine.alone else (mine.reference_ms, theirs.reference_ms)
    values = (mine.value, theirs.value, float(low), float(high), tolerance)
    return Change(*name, *values, (mine.ms, theirs.ms), reference_ms, one_machine)


@dataclass(frozen=True)
class _Side:
    speeds: dict[Name, list[_Speed]]  # one for each distance of the cores
    failed: dict[Name, str]  # why
    unavailable: dict[str, str]  # engines that could not be opened, why

    def why_missing(self, name: Name) -> str | None:
        """Why an engine has no times though it was asked for; None where nobody asked."""
        return self.failed.get(name) or self.unavailable.get(name[0])

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
            devices = row.get("device"), theirs.get("device")
            found[row["engine"], row["batch"], row["region"]] = [
                _Speed.of(own, reference_row, devices)
                for own, reference_row in zip(settled(row), settled(theirs), strict=True)
            ]
        failed = {
            (row["engine"], row["batch"], row["region"]): str(row.get("reason"))
            for row in run["rows"]
            if row["status"] == "failed"
        }
        return cls(found, failed, {one["engine"]: one["reason"] for one in run["unavailable"]})
