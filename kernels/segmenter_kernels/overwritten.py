"""Shared memory that is filled again while an asynchronous product still reads it, found without a GPU.

Triton keeps the tiles of several steps in a ring of places. Its code for GPUs is followed step by step: which place a
copy fills, which places a product reads, which product a wait is for. Places, and barriers too, may be variables of a
loop. What is not known before a launch is taken to be so that everything happens: loops run long enough to meet every
place again, conditions hold and do not hold, a place that is not known is every place. What is not understood is
refused.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from segmenter_kernels.ttgir import NAME, NotFollowedError, Operation, parsed
from segmenter_kernels.ttgir_values import AtLeast, Known, Place, joined, number

_PLACES = re.compile(r"memdesc_index .*?: !ttg\.memdesc<(\d+)x")
_BARRIER = re.compile(r"(%[\w#.$-]+)\[(%[\w#.$-]+)\]")
_PENDING = re.compile(r"pendings = (\d+)")
_VARIABLE = re.compile(r"(%[\w.$-]+) = (%[\w#.$-]+)")
_ANY = Place(None, None)
_UNKNOWN = "shared memory that is not known"
_EXACT_STEPS = 64  # of a loop whose steps are known, followed one by one
_MOST_MOMENTS = 1024
# they run their regions once, or hide them from what is followed here
_PLAIN_REGIONS = ("module", "builtin.module", "tt.func", "tt.reduce", "tt.scan")
# they touch shared memory or barriers, and neither fill it, nor read it later, nor wait
_HARMLESS = (
    *("ttg.local_load", "ttg.local_dealloc", "ttng.inval_barrier", "ttng.barrier_expect", "ttng.fence_async_shared"),
    *("ttng.async_tma_copy_local_to_global", "ttng.tmem_load", "ttng.tmem_store"),
)


@dataclass(frozen=True)
class _Product:
    """One that may still run: what it reads, and the barrier it ends at, None where groups of warps wait in order.

    perhaps: on a condition that is not known; only such products end where a wait has a condition that is not known, as
    Triton waits on the condition of the product, computed again where that is a step later.
    """

    reads: tuple[Place, ...]
    barrier: Place | None = None
    perhaps: bool = False


@dataclass(frozen=True)
class _Moment:
    """What may be: products that run, the newest last, and the parity of how many ended at each barrier."""

    running: tuple[_Product, ...] = ()
    ended: frozenset[tuple[Place, int]] = frozenset()


_Names = dict[str, Known]


def overwritten(ttgir: str) -> tuple[str, ...]:
    """Names of shared buffers that are filled again while one of the asynchronous products still reads them.

    Products of Hopper (warp_group_dot) and of sm_100 (tc_gen5_mma). Seen on an H100 with rings of tiles that threads
    read too, which lack a place (Triton 3.6 and 3.8), as errors that change from run to run.

    Raises NotFollowedError where something touches shared memory that is not known here, such as other tasks for some
    warps (ttg.warp_specialize), or where the text is no such code.
    """
    sizes = [int(places) for places in _PLACES.findall(ttgir)]
    followed = _Followed(max(sizes, default=1) + 2)
    followed.run(parsed(ttgir), {})
    return tuple(dict.fromkeys(followed.found))


class _Followed:
    """Operations as they run; a loop of unknown end runs `steps` times, and as often at steps that come later."""

    def __init__(self, steps: int) -> None:
        self.found: list[str] = []
        self._steps = steps
        self._moments = frozenset([_Moment()])

    def run(self, operations: list[Operation], known: _Names) -> list[Known | None]:
        """What a region yields."""
        for one in operations:
            if one.kind == "scf.yield":
                return [known.get(name) for name in one.names]
            try:
                self._step(one, known)
            except (IndexError, KeyError, ValueError) as error:
                raise NotFollowedError(f"{one.kind}, written in a way that is not known") from error
        return []

    def _step(self, one: Operation, known: _Names) -> None:
        kind, names = one.kind, one.names
        if one.regions:
            _bind(known, one.results, self._branch(one, known))
        elif kind.startswith("arith."):
            _bind(known, one.results, [number(one, known)])
        elif kind in ("ttg.local_alloc", "ttng.tmem_alloc"):
            place = Place(one.results[0], None)
            if one.text.lstrip().startswith("%"):  # of what it is filled with at once
                self._fill(place)
            known[one.results[0]] = place
        elif kind.startswith("ttg.memdesc_") or kind == "ttng.tmem_subslice":
            of = known.get(names[0])
            if kind == "ttg.memdesc_index" and isinstance(of, Place) and of.index is None:
                index = known.get(names[1]) if len(names) > 1 else None
                of = Place(of.ring, index if type(index) is int else None)
            _bind(known, one.results, [of])
        elif kind in ("ttg.async_copy_global_to_local", "ttg.local_store"):
            self._fill(known.get(names[1]))
        elif kind == "ttng.async_tma_copy_global_to_local":
            filled, _, predicate = NAME.findall(one.text.partition("]")[2].partition(" : ")[0])[:3]
            if known.get(predicate) != 0:
                self._fill(known.get(filled))
        elif kind == "ttng.warp_group_dot":
            if "isAsync = true" in one.text:
                self._start(one.operands[1:2] if one.types.startswith("tensor") else one.operands[:2], known)
            else:
                self._each(lambda moment: replace(moment, running=()))
        elif kind == "ttng.warp_group_dot_wait":
            pending = _PENDING.search(one.text)
            left = int(pending[1]) if pending else 0
            self._each(lambda moment: replace(moment, running=moment.running[max(0, len(moment.running) - left) :]))
            _bind(known, one.results, [known.get(name) for name in names])
        elif kind in ("ttng.tc_gen5_mma", "ttng.tc_gen5_mma_scaled"):
            if "is_async" in one.text:  # others are waited for at once
                scales = one.operands[3:5] if kind.endswith("scaled") else ()
                perhaps = one.operands[4 + len(scales)] not in known
                self._start(one.operands[:2] + scales, known, perhaps)
                for barrier, predicate in _BARRIER.findall(one.text.rpartition(" : ")[0]):
                    self._end_at(barrier, predicate, known, perhaps)
        elif kind == "ttng.tc_gen5_commit":
            self._end_at(names[0], one.operands[1] if len(one.operands) > 1 else None, known)
        elif kind == "ttng.init_barrier":
            if isinstance(new := known.get(names[0]), Place):
                self._each(lambda moment: replace(moment, ended=_with(moment.ended, new, 0)))
        elif kind == "ttng.wait_barrier":
            barrier, phase, *condition = NAME.findall(one.text.rpartition(" : ")[0].partition(" deps ")[0])
            if not condition or known.get(condition[0]) != 0:
                self._wait(known.get(barrier), known.get(phase), bool(condition) and condition[0] not in known)
        elif kind not in _HARMLESS and _touches(one, known):
            raise NotFollowedError(kind)

    def _each(self, change: Callable[[_Moment], _Moment]) -> None:
        self._moments = frozenset(map(change, self._moments))

    def _start(self, reads: tuple[str, ...], known: _Names, perhaps: bool = False) -> None:
        product = _Product(tuple(_place(known.get(name)) for name in reads), perhaps=perhaps)
        self._each(lambda moment: replace(moment, running=(*moment.running, product)))

    def _end_at(self, barrier: str, predicate: str | None, known: _Names, perhaps: bool = False) -> None:
        """All that runs ends before a barrier is told so, where that is sure to happen."""
        place = known.get(barrier)
        if isinstance(place, Place) and (predicate is None or known.get(predicate) not in (None, 0)):
            self._each(lambda moment: replace(moment, running=(*moment.running, _Product((), place, perhaps))))

    def _fill(self, filled: Known | None) -> None:
        place = _place(filled)
        reads = [read for moment in self._moments for product in moment.running for read in product.reads]
        self.found.extend(sorted({place.ring or read.ring or _UNKNOWN for read in reads if place.meets(read)}))

    def _wait(self, barrier: Known | None, phase: Known | None, perhaps: bool) -> None:
        """A barrier lets pass who waits for a phase of the parity of the last one that ended, so perhaps at once."""

        def waited(moment: _Moment) -> _Moment:
            at = [index for index, product in enumerate(moment.running) if product.barrier == barrier]
            ended = dict(moment.ended)
            if not at or not isinstance(barrier, Place) or barrier not in ended or phase != ended[barrier]:
                return moment
            # products end in the order in which they began
            for product in moment.running[: at[0] + 1]:
                if product.barrier in ended:
                    ended[product.barrier] = 1 - ended[product.barrier]
            ending = moment.running[: at[0] + 1]
            left = [one for one in ending if perhaps and not one.perhaps]
            return _Moment((*left, *moment.running[at[0] + 1 :]), frozenset(ended.items()))

        self._each(waited)

    def _branch(self, one: Operation, known: _Names) -> list[Known | None]:
        """What an operation with regions gives."""
        if one.kind == "scf.for":
            return self._loop(one, known)
        if one.kind in _PLAIN_REGIONS:
            for region in one.regions:
                self.run(region, dict(known))
            return [None] * len(one.results)
        if one.kind != "scf.if":
            raise NotFollowedError(one.kind)
        ways = [*one.regions, []][:2]
        chosen = known.get(one.names[0])
        if isinstance(chosen, int):
            return self.run(ways[0 if chosen else 1], dict(known))
        before, after, yielded = self._moments, frozenset[_Moment](), []
        for way in ways:
            self._moments = before
            yielded.append(self.run(way, dict(known)))
            after |= self._moments
        if len(after) > _MOST_MOMENTS:
            raise NotFollowedError(f"conditions that leave more than {_MOST_MOMENTS} ways")
        self._moments = after
        return [joined(x, y) for x, y in zip(*yielded, strict=False)]

    def _loop(self, one: Operation, known: _Names) -> list[Known | None]:
        head, _, rest = one.text.partition("iter_args(")
        variable, first, last, step = NAME.findall(head)[:4]
        pairs = _VARIABLE.findall(rest.partition(") -> ")[0])
        at, end, by = known.get(first), known.get(last), known.get(step)
        values = [at, *(known.get(given) for _, given in pairs)]

        def stepped(values: list[Known | None]) -> list[Known | None]:
            inner: _Names = dict(known)
            _bind(inner, (variable, *(name for name, _ in pairs)), values)
            yielded = self.run(one.regions[0], inner)
            at = values[0]
            later = at + by if isinstance(at, int) and isinstance(by, int) else None
            return [AtLeast(later) if later is not None and type(at) is AtLeast else later, *yielded]

        if type(at) is type(end) is type(by) is int and by > 0 and end - at <= _EXACT_STEPS * by:
            for _ in range(at, end, by):
                values = stepped(values)
            return values[1:]
        met = [values]
        for _ in range(self._steps):
            met.append(stepped(met[-1]))
        values = [AtLeast(x[-1]) if _grows(x) else x[-1] for x in zip(*met, strict=True)]
        for _ in range(self._steps):
            values = stepped(values)
        return values[1:]


def _grows(values: tuple[Known | None, ...]) -> bool:
    """Whether a variable counts the steps of its loop, and is no place in a ring."""
    return all(isinstance(x, int) and isinstance(y, int) and x < y for x, y in itertools.pairwise(values))


def _place(known: Known | None) -> Place:
    return known if isinstance(known, Place) else _ANY


def _with(ended: frozenset[tuple[Place, int]], barrier: Place, parity: int) -> frozenset[tuple[Place, int]]:
    return frozenset({**dict(ended), barrier: parity}.items())


def _touches(one: Operation, known: _Names) -> bool:
    return "memdesc" in one.text or any(isinstance(known.get(name), Place) for name in one.names)


def _bind(known: _Names, names: tuple[str, ...], values: list[Any]) -> None:
    for name, value in zip(names, values, strict=False):
        if value is None:
            known.pop(name, None)
        else:
            known[name] = value
