"""Shared memory that is filled again while an asynchronous product still reads it, found without a GPU.

Triton keeps the tiles of several steps in a ring of places. Its code for GPUs is followed step by step: which place a
copy fills, which places a product reads, which product a wait is for. Places, and barriers too, may be variables of a
loop. What is not known before a launch is taken to be so that everything happens: loops run long enough to meet every
place again, conditions hold.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_NAME = re.compile(r"%[\w#.$-]+")
_OPERATION = re.compile(r'^(?:(%[\w.$-]+)(?::(\d+))? = )?"?([\w.]+)"?(.*)$')
_PLACES = re.compile(r"memdesc_index .*?: !ttg\.memdesc<(\d+)x")
_CONSTANT = re.compile(r"(-?\d+|true|false) *(?::|loc|$)")
_COMPARED = re.compile(r"(\w+), (%[\w#.$-]+), (%[\w#.$-]+)")
_BARRIER = re.compile(r"(%[\w#.$-]+)\[%[\w#.$-]+\]")
_PENDING = re.compile(r"pendings = (\d+)")
_VARIABLE = re.compile(r"(%[\w.$-]+) = (%[\w#.$-]+)")
_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    **{"eq": lambda x, y: x == y, "ne": lambda x, y: x != y},
    **{name: lambda x, y: x < y for name in ("slt", "ult")},
    **{name: lambda x, y: x <= y for name in ("sle", "ule")},
    **{name: lambda x, y: x > y for name in ("sgt", "ugt")},
    **{name: lambda x, y: x >= y for name in ("sge", "uge")},
}
_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    **{"addi": lambda x, y: x + y, "subi": lambda x, y: x - y, "muli": lambda x, y: x * y},
    **{"xori": lambda x, y: x ^ y, "andi": lambda x, y: x & y, "ori": lambda x, y: x | y},
    **{"minsi": min, "maxsi": max},
    # of what is not negative
    **{name: lambda x, y: x % y if y else 0 for name in ("remsi", "remui")},
    **{name: lambda x, y: x // y if y else 0 for name in ("divsi", "divui")},
}


@dataclass
class _Operation:
    """results: `%x`, or `%x#0`, `%x#1` of several; names: all that follow its own, in order; text: what has them."""

    results: tuple[str, ...]
    kind: str
    names: tuple[str, ...]
    text: str
    regions: list[list["_Operation"]] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """One of a ring, or memory that is no ring: index None, as where it is not known."""

    ring: str
    index: int | None

    def meets(self, other: "_Place") -> bool:
        return self.ring == other.ring and (self.index == other.index or None in (self.index, other.index))


@dataclass(frozen=True)
class _Product:
    """One that may still run: what it reads, and the barrier it ends at, None where groups of warps wait in order."""

    reads: tuple[_Place, ...]
    barrier: _Place | None = None


_Names = dict[str, int | _Place]  # what is known of them


def overwritten(ttgir: str) -> tuple[str, ...]:
    """Names of shared buffers that are filled again while one of the asynchronous products still reads them.

    Products of Hopper (warp_group_dot) and of sm_100 (tc_gen5_mma). Seen on an H100 with rings of tiles that threads
    read too, which lack a place (Triton 3.6 and 3.8), as errors that change from run to run. What warps do that were
    given other tasks than the rest (ttg.warp_specialize) is not followed.
    """
    sizes = [int(places) for places in _PLACES.findall(ttgir)]
    followed = _Followed(max(sizes, default=1) + 2)
    followed.run(_parsed(ttgir), {})
    return tuple(dict.fromkeys(followed.found))


def _parsed(ttgir: str) -> list[_Operation]:
    """The operations of a module, in the regions they are in."""
    outermost: list[_Operation] = []
    blocks = [outermost]  # the innermost last
    for line in ttgir.splitlines():
        text = line.strip()
        if text.startswith("}"):
            blocks.pop()
            if not text.endswith("{"):
                continue
            operation = blocks[-1][-1]  # of which this is another region
        elif match := _OPERATION.match(text):
            name, count, kind, rest = match.groups()
            results = () if name is None else (name,) if count is None else _numbered(name, int(count))
            operation = _Operation(results, kind, tuple(_NAME.findall(rest)), rest)
            blocks[-1].append(operation)
        else:
            continue
        if text.endswith("{"):
            operation.regions.append([])
            blocks.append(operation.regions[-1])
    return outermost


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}#{index}" for index in range(count))


class _Followed:
    """Operations as they run; each of a loop runs `steps` times, or as often as it does where that is known."""

    def __init__(self, steps: int) -> None:
        self.found: list[str] = []
        self._steps = steps
        self._running: list[_Product] = []  # the newest last
        self._ends: dict[_Place, int] = {}  # products that surely ended at a barrier

    def run(self, operations: list[_Operation], known: _Names) -> list[int | _Place | None]:
        """What a region yields."""
        for one in operations:
            if one.kind in ("scf.yield", "scf.condition"):
                return [known.get(name) for name in one.names]
            self._step(one, known)
        return []

    def _step(self, one: _Operation, known: _Names) -> None:
        kind, names = one.kind, one.names
        if one.regions:
            _bind(known, one.results, self._branch(one, known))
        elif kind.startswith("arith."):
            _bind(known, one.results, [_number(one, known)])
        elif kind == "ttg.local_alloc":
            place = _Place(one.results[0], None)
            if one.text.lstrip().startswith("%"):  # of what it is filled with at once
                self._fill(place)
            known[one.results[0]] = place
        elif kind.startswith("ttg.memdesc_"):
            place_or_not = known.get(names[0])
            if kind == "ttg.memdesc_index" and isinstance(place_or_not, _Place):
                index = known.get(names[1]) if len(names) > 1 else None
                place_or_not = _Place(place_or_not.ring, index if isinstance(index, int) else None)
            _bind(known, one.results, [place_or_not])
        elif kind in ("ttg.async_copy_global_to_local", "ttg.local_store"):
            self._fill(known.get(names[1]))
        elif kind.startswith("ttng.async_tma_") and kind.endswith("_global_to_local"):
            filled, _, predicate = _NAME.findall(one.text.partition("]")[2].partition(" : ")[0])[:3]
            if known.get(predicate) != 0:
                self._fill(known.get(filled))
        elif kind == "ttng.warp_group_dot":
            if "isAsync = true" in one.text:
                self._start(names[:2], known)
            else:
                self._running.clear()
        elif kind == "ttng.warp_group_dot_wait":
            pending = _PENDING.search(one.text)
            self._running = self._running[max(0, len(self._running) - (int(pending[1]) if pending else 0)) :]
            _bind(known, one.results, [known.get(name) for name in names])
        elif kind in ("ttng.tc_gen5_mma", "ttng.tc_gen5_mma_scaled"):
            if "is_async" in one.text:  # others are waited for at once
                for barrier in _barriers(one) or [None]:
                    self._start(names[:2], known, barrier)
        elif kind == "ttng.tc_gen5_commit":
            self._start((), known, names[0])
        elif kind == "ttng.init_barrier":
            if isinstance(barrier_place := known.get(names[0]), _Place):
                self._ends[barrier_place] = 0
        elif kind == "ttng.wait_barrier":
            self._wait(known.get(names[0]), known.get(names[1]))

    def _start(self, reads: tuple[str, ...], known: _Names, barrier: str | None = None) -> None:
        ends = known.get(barrier) if barrier else None
        places = tuple(place for place in map(known.get, reads) if isinstance(place, _Place))
        self._running.append(_Product(places, ends if isinstance(ends, _Place) else None))

    def _fill(self, place: int | _Place | None) -> None:
        if isinstance(place, _Place) and any(place.meets(read) for product in self._running for read in product.reads):
            self.found.append(place.ring)

    def _wait(self, barrier: int | _Place | None, phase: int | _Place | None) -> None:
        """A barrier lets pass who waits for a phase of the parity of the last one that ended, so perhaps at once."""
        at = [index for index, product in enumerate(self._running) if product.barrier == barrier]
        if isinstance(barrier, _Place) and at and (phase is None or phase == self._ends.get(barrier, 0) % 2):
            # products end in the order in which they began
            for product in self._running[: at[0] + 1]:
                if product.barrier is not None:
                    self._ends[product.barrier] = self._ends.get(product.barrier, 0) + 1
            self._running = self._running[at[0] + 1 :]

    def _branch(self, one: _Operation, known: _Names) -> list[int | _Place | None]:
        """What an operation with regions gives."""
        if one.kind == "scf.for":
            return self._loop(one, known)
        if one.kind != "scf.if":
            for region in one.regions:
                self.run(region, dict(known))
            return [None] * len(one.results)
        if len(one.regions) == 1:
            if known.get(one.names[0]) != 0:
                self.run(one.regions[0], dict(known))
            return []
        chosen = known.get(one.names[0])
        if isinstance(chosen, int):
            return self.run(one.regions[0 if chosen else 1], dict(known))
        before, ends = list(self._running), dict(self._ends)
        yielded = self.run(one.regions[0], dict(known))
        # either may have run: what runs after one of them may run
        after, self._running, others = self._running, before, dict(self._ends)
        self._ends = ends
        other = self.run(one.regions[1], dict(known))
        self._running += [product for product in after if product not in self._running]
        self._ends |= {barrier: count for barrier, count in others.items() if barrier not in self._ends}
        return [x if x == y else None for x, y in zip(yielded, other, strict=True)]

    def _loop(self, one: _Operation, known: _Names) -> list[int | _Place | None]:
        head, _, rest = one.text.partition("iter_args(")
        variable, first, last, step = _NAME.findall(head)[:4]
        pairs = _VARIABLE.findall(rest.partition(") -> ")[0])
        values = [known.get(given) for _, given in pairs]
        at, end, by = known.get(first), known.get(last), known.get(step)
        for _ in range(self._steps):
            if isinstance(at, int) and isinstance(end, int) and at >= end:
                break
            inner: _Names = dict(known)
            _bind(inner, (variable, *(name for name, _ in pairs)), [at, *values])
            values = self.run(one.regions[0], inner)
            at = at + by if isinstance(at, int) and isinstance(by, int) else None
        return values


def _barriers(product: _Operation) -> list[str | None]:
    """A product's own barriers, each with a predicate in brackets; none where a commit that follows brings one."""
    return list(_BARRIER.findall(product.text.partition(" : ")[0]))


def _bind(known: _Names, names: tuple[str, ...], values: list[Any]) -> None:
    for name, value in zip(names, values, strict=False):
        if value is None:
            known.pop(name, None)
        else:
            known[name] = value


def _number(one: _Operation, known: _Names) -> int | _Place | None:
    """What integer arithmetic gives, None where it depends on something unknown or is about tensors."""
    operation = one.kind.removeprefix("arith.")
    if operation == "constant":
        match = _CONSTANT.match(one.text.strip())
        return None if match is None else int({"true": "1", "false": "0"}.get(match[1], match[1]))
    if operation == "select":
        chosen, x, y = (known.get(name) for name in one.names[:3])
        return None if chosen is None else x if chosen else y
    if operation in ("extsi", "extui", "trunci", "index_cast"):
        return known.get(one.names[0])
    x, y = (known.get(name) for name in (*one.names, "", "")[:2])
    if not isinstance(x, int) or not isinstance(y, int):
        return None
    if operation == "cmpi":
        match = _COMPARED.search(one.text)
        return None if match is None else int(_COMPARISONS[match[1]](x, y))
    return _ARITHMETIC[operation](x, y) if operation in _ARITHMETIC else None
