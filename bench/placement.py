"""How far apart the cores are while engines are timed: the host of a virtual machine moves them.

Cores that share a cache pass a line of it on in a quarter of the time that others take. An engine whose threads hand
over often then takes another time, for seconds or minutes, and one that seldom does takes the same: their ratio has two
sizes. So rounds count together only where the cores were equally far apart.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from segmenter_bench.sections import ENOUGH_ROUNDS

Gauge = Callable[[], float]
ALIKE = 1.5  # times as long that still counts as equally far; cores without a common cache take four times as long
AGAIN_SECONDS = 0.1  # runtimes keep their threads spinning for a moment, beside which a line takes longer


@dataclass(frozen=True)
class Placement:
    """Rounds, by index, in which the cores were equally far apart.

    core_to_core_ns: None for rounds of which that is unknown or untrue. moved: whether the cores did so in the race.
    """

    rounds: tuple[int, ...]
    core_to_core_ns: float | None = None
    moved: bool = False


def gauge(threads: int) -> Gauge | None:
    """What reads the nanoseconds a cache line takes between the outermost cores of this process.

    None where engines have one thread or core, and where the distance cannot be read.
    """
    import segmenter_trt

    cores = sorted(os.sched_getaffinity(0))
    if threads < 2 or len(cores) < 2:
        return None
    read = partial(segmenter_trt.core_to_core_ns, cores[0], cores[-1])
    try:
        read()
    except segmenter_trt.Unavailable:
        return None
    return read


def steady(read: Gauge, before: float | None = None) -> float:
    """A reading; one beyond that `before` is taken again, for what disturbs it only makes it longer."""
    now = read()
    if before is None or alike(now, before):
        return now
    time.sleep(AGAIN_SECONDS)
    return min(now, read())


def alike(*distances: float) -> bool:
    """Whether the cores were equally far apart at all these readings."""
    return max(distances) <= ALIKE * min(distances)


def same(mine: float | None, theirs: float | None) -> bool:
    """Whether two timings were made with the cores equally far apart, as far as anyone knows."""
    return mine is theirs if mine is None or theirs is None else alike(mine, theirs)


def placements(readings: Sequence[Sequence[float]]) -> list[Placement]:
    """Rounds by how far apart the cores were in all of each, the nearest first.

    readings: those of each round. Rounds in which the cores moved are in none.
    """
    settled = sorted((float(np.median(own)), index) for index, own in enumerate(readings) if own and alike(*own))
    groups: list[list[tuple[float, int]]] = []
    for distance, index in settled:
        if groups and alike(distance, groups[-1][0][0]):
            groups[-1].append((distance, index))
        else:
            groups.append([(distance, index)])
    return [
        Placement(tuple(sorted(index for _, index in group)), float(np.median([distance for distance, _ in group])))
        for group in groups
    ]


def counted(readings: Sequence[Sequence[float]], wanted: int) -> list[Placement]:
    """What the rounds so far are summed up by: the nearest cores of enough rounds first, where engines vary least.

    wanted: rounds of one placement that a race was asked for. All rounds together where nobody measured, and where no
    placement has enough of them.
    """
    everything = tuple(range(len(readings)))
    enough = min(ENOUGH_ROUNDS, wanted)
    found = [one for one in placements(readings) if len(one.rounds) >= enough]
    if not found:
        return [Placement(everything, moved=any(readings))]
    return [replace(one, moved=one.rounds != everything) for one in found]


def over(readings: Sequence[Sequence[float]], wanted: int) -> bool:
    """Whether the nearest placement that was seen has as many rounds as wanted."""
    found = placements(readings)
    return bool(found) and len(found[0].rounds) >= wanted
