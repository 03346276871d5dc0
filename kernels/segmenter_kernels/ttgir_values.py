"""What is known of the values in Triton's code for GPUs before a launch: integers, and places in shared memory."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from segmenter_kernels.ttgir import Operation

_CONSTANT = re.compile(r"(-?\d+|true|false) *(?::|loc|$)")
_COMPARED = re.compile(r"(\w+), (%[\w#.$-]+), (%[\w#.$-]+)")
_FAR = 1 << 62
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
# of a number that counts steps, and one that does not
_BY_POSITIVE = ("muli", "divsi", "divui")
_GROWING = ("addi", "subi", "maxsi", *_BY_POSITIVE)
_TURNING = ("remsi", "remui", "andi")  # as steps go on, all of their values are met


class AtLeast(int):
    """A number that counts the steps of a loop, at one of the later steps: its value here stands for larger ones."""


@dataclass(frozen=True)
class Place:
    """One of a ring, or memory that is no ring: index None, as where it is not known; ring None where that is not."""

    ring: str | None
    index: int | None

    def meets(self, other: "Place") -> bool:
        if self.ring is None or other.ring is None:
            return True
        return self.ring == other.ring and (self.index == other.index or None in (self.index, other.index))


Known = int | Place


def joined(x: Known | None, y: Known | None) -> Known | None:
    """What is known of a value that is one of two."""
    if isinstance(x, Place) and isinstance(y, Place) and x.ring == y.ring:
        return x if x == y else Place(x.ring, None)
    return None if x != y else y if isinstance(y, AtLeast) else x


def number(one: Operation, known: Mapping[str, Known]) -> Known | None:
    """What an operation of arithmetic gives; None where it depends on something unknown or is about tensors."""
    operation = one.kind.removeprefix("arith.")
    if operation == "constant":
        match = _CONSTANT.match(one.text.strip())
        return None if match is None else int({"true": "1", "false": "0"}.get(match[1], match[1]))
    if operation == "select":
        chosen, x, y = (known.get(name) for name in one.names[:3])
        return joined(x, y) if chosen is None else x if chosen else y
    if operation in ("extsi", "extui", "trunci", "index_cast"):
        value = known.get(one.names[0])
        return (
            value & 1 if isinstance(value, int) and one.text.rstrip().partition(" loc")[0].endswith("to i1") else value
        )
    x, y = (known.get(name) for name in (*one.names, "", "")[:2])
    if not isinstance(x, int) or not isinstance(y, int):
        return None
    if operation == "cmpi":
        match = _COMPARED.search(one.text)
        return None if match is None else _compared(_COMPARISONS[match[1]], x, y)
    if operation not in _ARITHMETIC:
        return None
    result = _ARITHMETIC[operation](x, y)
    if isinstance(y, AtLeast):
        return AtLeast(result) if operation in ("addi", "maxsi") else None
    if not isinstance(x, AtLeast) or operation in _TURNING:
        return result
    return AtLeast(result) if operation in _GROWING and (y > 0 or operation not in _BY_POSITIVE) else None


def _compared(comparison: Callable[[int, int], bool], x: int, y: int) -> int | None:
    """Whether it holds, None where it does at some later steps and not at others."""
    if isinstance(x, AtLeast) and isinstance(y, AtLeast):
        return None
    xs = (x, max(x, y), _FAR) if isinstance(x, AtLeast) else (x,)
    ys = (y, max(x, y), _FAR) if isinstance(y, AtLeast) else (y,)
    found = {comparison(int(a), int(b)) for a in xs for b in ys}
    return int(found.pop()) if len(found) == 1 else None
