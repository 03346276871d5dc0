"""Triton's code for GPUs (TTGIR), read from its text: operations in the regions they are in."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

NAME = re.compile(r"%[\w#.$-]+")
_OPERATION = re.compile(r'^(?:(%[\w.$-]+(?::\d+)?(?:, %[\w.$-]+(?::\d+)?)*) = )?"?([\w.]+)"?(.*)$')
_RESULT = re.compile(r"(%[\w.$-]+)(?::(\d+))?")
# products and fills of shared memory, wherever they stand in the text; `#` and `!` begin names of types
_DECISIVE = re.compile(r'(?<![#!\w."])[a-z]\w*\.\w*(?:group_dot|_mma|to_local|async_tma|local_store)\w*')


class NotFollowedError(RuntimeError):
    """Code in which something decides what happens to shared memory that is not understood."""


@dataclass
class Operation:
    """results: `%x`, or `%x#0`, `%x#1` of several; names: all that follow its own, in order; text: what has them."""

    results: tuple[str, ...]
    kind: str
    names: tuple[str, ...]
    text: str
    regions: list[list["Operation"]] = field(default_factory=list)

    @property
    def operands(self) -> tuple[str, ...]:
        """Names in front of the types, without those in brackets: tokens, predicates, coordinates."""
        return tuple(NAME.findall(re.sub(r"\[[^]]*\]", "", self.text.rpartition(" : ")[0])))

    @property
    def types(self) -> str:
        return self.text.rpartition(" : ")[2]


def parsed(ttgir: str) -> list[Operation]:
    """The operations of a module.

    Raises NotFollowedError where the text is none, or names products and fills in places where none was read.
    """
    outermost: list[Operation] = []
    blocks = [outermost]  # the innermost last
    for line in ttgir.splitlines():
        text = line.strip()
        if text.startswith("}"):
            if len(blocks) == 1:
                raise NotFollowedError("a region ends that did not begin")
            blocks.pop()
            if not text.endswith("{"):
                continue
            operation = blocks[-1][-1]  # of which this is another region
        elif match := _OPERATION.match(text):
            given, kind, rest = match.groups()
            operation = Operation(_results(given or ""), kind, tuple(NAME.findall(rest)), rest)
            blocks[-1].append(operation)
        elif text.startswith("%"):
            raise NotFollowedError(f"line {text[:60]!r}")
        else:
            continue
        if text.endswith("{"):
            operation.regions.append([])
            blocks.append(operation.regions[-1])
    if len(blocks) > 1:
        raise NotFollowedError("a region does not end")
    kinds = Counter(each.kind for each in _all(outermost))
    if "tt.func" not in kinds:
        raise NotFollowedError("no function of Triton's code for GPUs")
    for kind, count in Counter(_DECISIVE.findall(ttgir)).items():
        if kinds[kind] != count:
            raise NotFollowedError(f"{kind}, {count} times in the text and {kinds[kind]} times read")
    return outermost


def _results(given: str) -> tuple[str, ...]:
    found: list[str] = []
    for name, count in _RESULT.findall(given):
        found += [f"{name}#{index}" for index in range(int(count))] if count else [name]
    return tuple(found)


def _all(operations: list[Operation]) -> Iterator[Operation]:
    for one in operations:
        yield one
        for region in one.regions:
            yield from _all(region)
