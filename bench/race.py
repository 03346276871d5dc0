"""Engines measured against each other: opened each in its own process, checked, then timed in turns."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segmenter.errors import EngineError
from segmenter.files import sha256
from segmenter_bench.engines import REFERENCE, TRUTH, Entry
from segmenter_bench.machine import Neighbours, Spending
from segmenter_bench.placement import Distances, Gauge, Placement, counted, over
from segmenter_bench.timing import Burst, Timing, each_round, ratio
from segmenter_bench.worker import Worker
from segmenter_engines.limits import LIMITS
from segmenter_engines.manifest import weights_of

MORE_ROUNDS = 2  # times as many at most, where cores move meanwhile


@dataclass(frozen=True)
class Pace:
    """How long each engine is measured: `rounds` turns of `burst_seconds`, at least `min_calls` calls each.

    Where cores move meanwhile, as many with the cores as near as any were, in at most `MORE_ROUNDS` times as many.
    """

    rounds: int = 6
    burst_seconds: float = 1.0
    min_calls: int = 2
    warmup: int = 2


@dataclass
class Contestant:
    """An open engine. `listed` is False for a reference nobody asked to see; `failure` says why it left the race.

    sha256: of the file it was opened from, by which rows of other runs are known to be of the same engine.
    """

    entry: Entry
    worker: Worker
    listed: bool
    sha256: str
    failure: str | None = None
    bursts: list[Burst] = field(default_factory=list)

    @property
    def precision(self) -> str:
        return self.entry.precision or str(self.worker.facts["describe"]["precision"])

    @property
    def device(self) -> str:
        """What it computes on: "cpu", or a GPU's name."""
        return str(self.worker.facts["describe"].get("device", "cpu"))


def say(message: str) -> None:
    """Progress, on stderr: stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def artifact_sha256(entry: Entry, folder: Path) -> str:
    """SHA-256 of the file the engine of a row is opened from; of a checkpoint, of its weights."""
    return sha256(weights_of(folder / entry.artifact))


@contextmanager
def opened(
    chosen: Sequence[Entry], support: Sequence[Entry], folder: Path, threads: int
) -> Iterator[tuple[list[Contestant], list[dict[str, str]]]]:
    """Workers of the chosen engines and, unlisted, of those in `support` not among them; and those that cannot run.

    The second value names each unavailable engine with the reason in one line. All workers end with the block.
    """
    contestants: list[Contestant] = []
    unavailable: list[dict[str, str]] = []
    with ExitStack() as stack:
        for entry in (*chosen, *(entry for entry in support if entry not in chosen)):
            say(f"opening {entry.name}")
            try:
                worker = Worker(entry, folder, threads)
            except EngineError as error:
                unavailable.append({"engine": entry.name, "reason": str(error)})
                continue
            stack.callback(worker.close)
            contestants.append(Contestant(entry, worker, entry in chosen, artifact_sha256(entry, folder)))
        yield contestants, unavailable


def race(
    contestants: Sequence[Contestant],
    images: Sequence[np.ndarray],
    batches: Sequence[int],
    regions: Sequence[str],
    pace: Pace,
    trained: bool,
    keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    gauge: Gauge | None = None,
) -> list[dict[str, Any]]:
    """One row for each listed engine, batch size and timed region, in that nesting from the outside in.

    images: uint8 RGB [H, W, 3], all of one size; labels are compared with those PyTorch gives each image alone, so that
    a batch whose rows influence each other shows. trained: whether agreement of 8 and 16 bit engines means anything.
    keep: called with the rows so far after each round, so that a run that is cut has them.
    gauge: how far apart the cores are, see `segmenter_bench.placement`; rows are of the rounds of one placement.
    Raises EngineError when the truth itself is not among the contestants.
    """
    truth = next((one for one in contestants if one.entry.name == TRUTH), None)
    if truth is None:
        raise EngineError(f"engine {TRUTH} cannot run, and without its labels nothing can be checked; see its reason")
    say(f"labels of {len(images)} images from {TRUTH}")
    wanted = np.concatenate([truth.worker.labels(image[None]) for image in images])
    rows: list[dict[str, Any]] = []
    for region in regions:
        # the rivals' labels come by way of logits anyhow
        running = [one for one in contestants if region != "logits" or one.worker.facts["logits"]]
        for batch in batches:
            shown = np.stack([images[index % len(images)] for index in range(batch)])
            expected = np.stack([wanted[index % len(images)] for index in range(batch)])
            # a batch of one is checked on every image, a larger one on itself
            checks = list(zip(images, wanted, strict=True)) if batch == 1 else []
            agreements = {}
            for one in running:
                one.failure, one.bursts = None, []
                say(f"{one.entry.name}: {region}, batch {batch}: check and warm-up")
                try:
                    if one.entry.compared:
                        pairs = [(one.worker.labels(image[None])[0], answer) for image, answer in checks] or [
                            (one.worker.labels(shown), expected)
                        ]
                        agreements[one.entry.name] = agreement(pairs)
                    else:
                        _require_labels(one, shown, expected)
                    one.worker.prepare(shown, region, pace.warmup)
                except EngineError as error:
                    one.failure = str(error)
            say(f"{region}, batch {batch}: {pace.rounds} rounds")
            now: list[dict[str, Any]] = []
            for others, placed in _rounds(running, pace, gauge):
                now = [
                    _row(one, running, batch, region, agreements.get(one.entry.name), trained, placed)
                    | {"others_busy": others}
                    for one in running
                    if one.listed
                ]
                keep(rows + now)
            rows += now
    return rows


def _require_labels(one: Contestant, images: np.ndarray, like: np.ndarray) -> None:
    """Raises EngineError where an engine that is not compared gives no labels of these images at all."""
    labels = one.worker.labels(images)
    if labels.shape != like.shape or labels.dtype != like.dtype:
        raise EngineError(f"labels {labels.dtype} {labels.shape}: wanted {like.dtype} {like.shape}")


def agreement(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Share of pixels with the same label, over pairs of label arrays; 0 where shapes differ."""
    same = sum(int((labels == truth).sum()) if labels.shape == truth.shape else 0 for labels, truth in pairs)
    return same / sum(truth.size for _, truth in pairs)


def limit_of(precision: str, trained: bool) -> float | None:
    """The agreement an engine must reach; None where it says nothing: a random network has near ties everywhere."""
    return 1.0 - LIMITS[precision].disagreement if trained or precision == "fp32" else None


def _rounds(
    contestants: Sequence[Contestant], pace: Pace, gauge: Gauge | None
) -> Iterator[tuple[float | None, list[Placement]]]:
    """Time the contestants still running.

    After each round: the share of the cores others took so far, if known, and what the rounds so far are summed up by.
    """
    running = {one.entry.name: one for one in contestants if one.failure is None}
    distances = Distances(gauge)

    def turn(one: Contestant) -> Burst:
        if one.failure is None:
            try:
                return one.worker.burst(pace.burst_seconds, pace.min_calls)
            except EngineError as error:
                one.failure = str(error)
        return Burst([], 0.0)

    # with this process, whose threads are what reads how far apart the cores are
    neighbours = Neighbours(Spending(one.worker.pid for one in contestants))
    turns = {name: functools.partial(turn, one) for name, one in running.items()}
    for done, given in enumerate(each_round(turns, MORE_ROUNDS * pace.rounds, distances.settle), 1):
        for name, bursts in given.items():
            running[name].bursts = bursts
        of_rounds = distances.of_rounds(len(turns), done)
        yield neighbours.share(), counted(of_rounds, pace.rounds)
        if over(of_rounds, pace.rounds) or (not distances.readings and done >= pace.rounds):
            return


def _row(
    one: Contestant,
    contestants: Sequence[Contestant],
    batch: int,
    region: str,
    share: float | None,
    trained: bool,
    placed: Sequence[Placement],
) -> dict[str, Any]:
    limit = limit_of(one.precision, trained) if one.entry.compared else None
    row: dict[str, Any] = {
        "engine": one.entry.name,
        "sha256": one.sha256,
        "precision": one.precision,
        "batch": batch,
        "region": region,
        "agreement": share,
        "agreement_limit": limit,
        "compared": one.entry.compared,
        "status": "ok",
        "reason": None,
        "timing": None,
        "ratio": None,
        "rounds_ms": None,
        "core_to_core_ns": None,
        "cores_moved": placed[0].moved,
        "other_placements": [],
        "memory_bytes": None,
        "extra_memory_bytes": None,
        "open_seconds": one.worker.facts["seconds"],
        "open_memory_bytes": one.worker.facts["memory_bytes"],
        "describe": one.worker.facts["describe"],
        "device": one.device,
        "reference_device": reference.device if (reference := _reference(contestants)) else None,
    }
    if one.failure is None:
        try:
            row["memory_bytes"] = one.worker.memory()
        except EngineError as error:  # it died between its turns
            one.failure = str(error)
    if one.failure is not None:
        return row | {"status": "failed", "reason": one.failure}
    row |= _times(one, contestants, batch, placed[0])
    row["other_placements"] = [_times(one, contestants, batch, other) for other in placed[1:]]
    resident = one.worker.facts["resident_bytes"]
    row["extra_memory_bytes"] = None if resident is None else row["memory_bytes"] - resident
    if limit is not None and share is not None and share < limit:
        return row | {
            "status": "failed",
            "reason": f"{share:.2%} of pixels agree with PyTorch; wanted {limit:.1%} at {one.precision}",
        }
    return row


def _times(one: Contestant, contestants: Sequence[Contestant], batch: int, placement: Placement) -> dict[str, Any]:
    """What a row holds of the rounds of one placement."""
    bursts = [one.bursts[index] for index in placement.rounds]
    reference = _reference(contestants)
    speedup = None
    # a GPU against a CPU says nothing of the engine
    if reference is not None and reference.failure is None and reference.device == one.device:
        speedup = asdict(ratio([reference.bursts[index] for index in placement.rounds], bursts))
    return {
        "timing": asdict(Timing.of(bursts, batch)),
        "ratio": speedup,
        "rounds_ms": [[round(ms, 4) for ms in burst.ms] for burst in bursts],
        "core_to_core_ns": placement.core_to_core_ns,
    }


def _reference(contestants: Sequence[Contestant]) -> Contestant | None:
    return next((one for one in contestants if one.entry.name == REFERENCE), None)
