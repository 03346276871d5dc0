"""Wall times of calls: bursts, quantiles, and ratios between engines measured in turns."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Turn = TypeVar("Turn")
# how the engines of a run lived and were checked, for its reader
IN_PROCESSES = (
    "Each runs in a process of its own; memory is the most that held while running, Python and libraries included."
    " What a process frees it keeps, as in a tuned server: as glibc comes, large buffers go back to the system and"
    " every call pays for their pages anew, with which PyTorch's logits took up to twice as long."
    " Labels were compared with PyTorch's in the same run."
)

# calls that a quantile takes: of fewer none need be slower than it, and it is little else than the slowest
CALLS_OF_QUANTILE = {"ms_p90": 10, "ms_p99": 100}


@dataclass(frozen=True)
class Burst:
    """Calls made in a row: `ms` of wall time each, and `cpu_ms`, the CPU time a call took over all threads on average.

    CPU time is what the wall time would rest on were nothing else running; where the two ratios of an engine to another
    differ much, the machine was busy.
    """

    ms: list[float]
    cpu_ms: float
    joules: float | None = None  # a call on average, of every GPU; None where no meter was read


@dataclass(frozen=True)
class Timing:
    """What the wall times of one engine at one batch size come to; `ms_*` are milliseconds a call."""

    batch: int
    calls: int
    ms_p50: float
    ms_p90: float
    ms_p99: float
    ms_mean: float
    ms_min: float
    cpu_ms: float  # CPU time of a call over all threads, median over bursts
    images_per_s: float  # batch over the median call: a stall of the machine is in p99, not here
    joules_per_image: float | None = None  # of the GPUs, idle power included; median over bursts

    @classmethod
    def of(cls, bursts: Sequence[Burst], batch: int = 1) -> "Timing":
        """Summary of all calls of some bursts.

        Raises ValueError without calls, or for times that are not positive.
        """
        times = np.asarray([ms for burst in bursts for ms in burst.ms], np.float64)
        if times.size == 0 or not (times > 0).all():
            raise ValueError(
                f"{times.size} times, smallest {times.min(initial=np.inf)}: wanted at least one, all above 0"
            )
        p50, p90, p99 = np.quantile(times, (0.5, 0.9, 0.99))
        joules = [burst.joules for burst in bursts]
        return cls(
            batch=batch,
            calls=int(times.size),
            ms_p50=float(p50),
            ms_p90=float(p90),
            ms_p99=float(p99),
            ms_mean=float(times.mean()),
            ms_min=float(times.min()),
            cpu_ms=float(np.median([burst.cpu_ms for burst in bursts])),
            images_per_s=1000.0 * batch / float(p50),
            joules_per_image=None if None in joules else float(np.median(np.asarray(joules, np.float64))) / batch,
        )


def shown(timing: Mapping[str, Any], key: str) -> float | None:
    """A value of a `Timing` as a row holds it; None for a quantile of too few calls to be one."""
    value: float | None = timing.get(key)
    return value if timing.get("calls", 0) >= CALLS_OF_QUANTILE.get(key, 0) else None


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the reference: median and quartiles over rounds, and the same by CPU time (`cpu`).

    `of_p50` is the ratio of the median calls of all rounds together, which is that of the images per second.
    """

    median: float
    low: float
    high: float
    cpu: float
    of_p50: float


def burst(
    function: Callable[[], object],
    seconds: float,
    min_calls: int,
    warmup: int = 1,
    meter: Callable[[], float] | None = None,
) -> Burst:
    """Time the calls that fit into `seconds`, at least `min_calls`, after `warmup` untimed ones.

    meter: joules used so far.
    """
    for _ in range(warmup):
        function()
    times: list[float] = []
    cpu_start, joules_start = time.process_time(), meter() if meter else 0.0
    end = time.perf_counter() + seconds
    while len(times) < min_calls or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    joules = (meter() - joules_start) / len(times) if meter else None
    return Burst(times, (time.process_time() - cpu_start) * 1e3 / len(times), joules)


def take_turns(
    candidates: Mapping[str, Callable[[], Turn]], rounds: int, after_turn: Callable[[], None] = lambda: None
) -> dict[str, list[Turn]]:
    """What every round gave by name, such as a burst, the candidates measuring one after the other in each round.

    A machine that slows down for a while slows all of them, so their ratios hold; who comes first changes every round.
    """
    given: dict[str, list[Turn]] = {name: [] for name in candidates}
    for given in each_round(candidates, rounds, after_turn):  # noqa: B007 - the last is the whole
        pass
    return given


def each_round(
    candidates: Mapping[str, Callable[[], Turn]], rounds: int, after_turn: Callable[[], None] = lambda: None
) -> Iterator[dict[str, list[Turn]]]:
    """`take_turns`, giving after each round what there is so far."""
    names = list(candidates)
    given: dict[str, list[Turn]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            given[name].append(candidates[name]())
            after_turn()
        yield given


def ratio(reference: Sequence[Burst], candidate: Sequence[Burst]) -> Ratio:
    """How many times faster `candidate` is than `reference`, from what both took in the same rounds.

    Raises ValueError when they did not run the same number of rounds.
    """
    if len(reference) != len(candidate) or not reference:
        raise ValueError(f"{len(candidate)} rounds against {len(reference)}: wanted the same number, at least one")
    pairs = zip(reference, candidate, strict=True)
    each = [float(np.median(slow.ms)) / float(np.median(fast.ms)) for slow, fast in pairs]
    low, median, high = np.quantile(each, (0.25, 0.5, 0.75))
    cpu = np.median([one.cpu_ms for one in reference]) / np.median([one.cpu_ms for one in candidate])
    p50, reference_p50 = (np.median([ms for one in bursts for ms in one.ms]) for bursts in (candidate, reference))
    return Ratio(float(median), float(low), float(high), float(cpu), float(reference_p50 / p50))
