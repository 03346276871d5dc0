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
from typing import Any

import numpy as np

from segmenter_bench.sections import ENOUGH_ROUNDS

Gauge = Callable[[], float | None]
ALIKE = 1.5  # times as long that still counts as equally far; cores without a common cache take four times as long
SETTLE_SECONDS = 0.02  # runtimes keep their threads spinning for a moment after a call
AGAIN_SECONDS = 0.1  # and some for longer, beside which a line takes longer


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

    None where engines have one thread or core, and where the distance cannot be read; a reading is None from the moment
    on that it cannot, such as when a core is taken away.
    """
    cores = sorted(os.sched_getaffinity(0))
    if threads < 2 or len(cores) < 2:
        return None
    read = partial(_read, cores[0], cores[-1])
    return None if read() is None else read


def _read(first: int, second: int) -> float | None:
    import segmenter_trt

    try:
        return segmenter_trt.core_to_core_ns(first, second)
    except (ValueError, segmenter_trt.Unavailable):
        return None


def steady(read: Gauge, before: float | None = None) -> float | None:
    """A reading; one well above that `before` is taken again, for what disturbs a reading makes it longer."""
    now = read()
    if now is None or before is None or now <= ALIKE * before:
        return now
    time.sleep(AGAIN_SECONDS)
    again = read()
    return None if again is None else min(now, again)


class Distances:
    """How far apart the cores were before the first turn of candidates and after each; nothing once nobody knows."""

    def __init__(self, read: Gauge | None) -> None:
        self._read = read
        first = steady(read) if read else None
        self.readings = [] if first is None else [first]

    def settle(self) -> None:
        """After a turn: let its threads come to rest, then read."""
        time.sleep(SETTLE_SECONDS)
        if self._read and self.readings:
            now = steady(self._read, self.readings[-1])
            if now is None:
                self.readings.clear()
            else:
                self.readings.append(now)

    def of_rounds(self, turns: int, done: int) -> list[list[float]]:
        """Readings of each of `done` rounds of so many turns; a round's begin with what the one before ended with."""
        return [self.readings[index * turns : (index + 1) * turns + 1] for index in range(done)]


def alike(*distances: float) -> bool:
    """Whether the cores were equally far apart at all these readings."""
    return max(distances) <= ALIKE * min(distances)


def comparable(mine: float | None, theirs: float | None) -> bool:
    """Whether two timings were made with the cores equally far apart, or nobody knows.

    Nobody does of runs with one thread, and of those made before it was read.
    """
    return mine is None or theirs is None or alike(mine, theirs)


def settled(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What a row of a race has of rounds with the cores equally far apart: itself, and its other placements.

    None of one that is of rounds in which they were now near and now far.
    """
    if row.get("cores_moved") and row.get("core_to_core_ns") is None:
        return []
    return [row, *row.get("other_placements", ())]


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
    placed = placements(readings)
    if len(placed) == 1 and placed[0].rounds == everything:
        return placed
    found = [replace(one, moved=True) for one in placed if len(one.rounds) >= enough]
    return found or [Placement(everything, moved=any(readings))]


def over(readings: Sequence[Sequence[float]], wanted: int) -> bool:
    """Whether the nearest placement that was seen has as many rounds as wanted."""
    found = placements(readings)
    return bool(found) and len(found[0].rounds) >= wanted
