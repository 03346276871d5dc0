"""Whether 8 bits are worth what they cost: their speed against the floating-point engine they were made from."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from segmenter_engines.invariants import one_at_a_time
from segmenter_engines.limits import SPEEDUP
from segmenter_engines.sessions.session import Session

ROUNDS = 9
BUDGET_S = 10.0  # but three rounds at least
BURST_S = 0.02  # a measurement is at least so long, well above what a clock and a scheduler blur


@dataclass(frozen=True)
class Trade:
    """Speeds of two engines on this machine, one image at a time, measured in turns."""

    against: str  # the rival engine
    ms: float  # median time of an image
    against_ms: float
    wanted: float = SPEEDUP

    @property
    def speedup(self) -> float:
        return self.against_ms / self.ms

    @property
    def pays(self) -> bool:
        return self.speedup >= self.wanted

    def line(self) -> str:
        """The trade in words."""
        told = f"{self.speedup:.2f}x the speed of {self.against} here"
        return told if self.pays else f"a failed trade: {told}, wanted {self.wanted}x; ship that one instead"


def time_trade(session: Session, rival: Session, images: Sequence[np.ndarray]) -> Trade:
    """Time an engine against its rival on images, uint8 RGB [H, W, 3], one at a time."""
    calls = [partial(one_at_a_time(engine), images[0]) for engine in (session, rival)]
    for call in calls:
        call()  # the first builds and allocates
    repeats = [max(1, round(BURST_S / max(_seconds(call, 1), 1e-6))) for call in calls]
    taken: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for turn in range(ROUNDS):
        if turn >= 3 and time.perf_counter() - started > BUDGET_S:
            break
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            taken[which].append(_seconds(calls[which], repeats[which]))
    ours, theirs = (1e3 * median(seconds) for seconds in taken)
    return Trade(rival.name, ours, theirs)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begun) / repeats
