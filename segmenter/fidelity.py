"""What became of every tensor of a file of weights, and of every parameter of the network."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from segmenter.errors import CheckpointError

Shape = tuple[int, ...]
AS_IT_IS, REARRANGED, RESIZED, MASKED = "as it is", "rearranged", "resized", "masked"
BY_DEFINITION = "by definition"  # not in the file, because the source's code knows it
NEW, LEFT_OUT, MISSING, UNFIT = "new", "left out", "missing", "does not fit"
_BLOCK = re.compile(r"(blocks\.|(?<!ffn\.)layers?\.|encoderblock_)\d+")


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the network came from: its keys in the file, their shape there, and what was done to them."""

    key: str
    shape: Shape
    how: str = AS_IT_IS

    def resized(self) -> "Origin":
        return replace(self, how=RESIZED)


@dataclass(frozen=True)
class Fate:
    """One parameter of the network, or one tensor of the file that became none; what there is none of is empty."""

    name: str
    key: str
    how: str
    old: Shape = ()
    new: Shape = ()


@dataclass(frozen=True)
class Fidelity:
    """The fates of all tensors, those of the network in its order first, and what is otherwise than at the source."""

    fates: tuple[Fate, ...]
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many tensors had each fate."""
        hows = [fate.how for fate in self.fates]
        return {how: hows.count(how) for how in dict.fromkeys(hows)}

    def require_whole(self, source: Path) -> None:
        """Raises CheckpointError naming what of the network the file lacks."""
        missing = [fate.name for fate in self.fates if fate.how == MISSING]
        if missing:
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            raise CheckpointError(
                f"{source}: {', '.join(missing[:4])}{more}: missing from the file; use whole weights of such a network"
            )


def account(
    wanted: Mapping[str, Tensor], origins: Mapping[str, Origin], left_out: Mapping[str, Shape], new: Sequence[str] = ()
) -> Fidelity:
    """Settle the fate of every tensor.

    wanted: the network's state; origins: those of its tensors the file gave; left_out: tensors of the file that were
    not used, with their shapes; new: beginnings of names the file is not expected to have.
    """
    fates = []
    for name, tensor in wanted.items():
        shape = tuple(tensor.shape)
        if origin := origins.get(name):
            how = UNFIT if origin.how == AS_IT_IS and origin.shape != shape else origin.how
            fates.append(Fate(name, origin.key, how, origin.shape, shape))
        else:
            fates.append(Fate(name, "", NEW if name.startswith(tuple(new)) else MISSING, (), shape))
    fates += [Fate("", key, LEFT_OUT, shape) for key, shape in left_out.items()]
    return Fidelity(tuple(fates))


def fidelity_table(fidelity: Fidelity, title: str | None = None) -> Table:
    """The fates as a table for printing, blocks that fared alike in one row."""
    groups: dict[Fate, list[Fate]] = {}
    for fate in fidelity.fates:
        alike = replace(fate, name=_BLOCK.sub(r"\1*", fate.name), key=_BLOCK.sub(r"\1*", fate.key))
        groups.setdefault(alike, []).append(fate)
    table = Table(title=None if title is None else escape(title))
    for heading in ("tensor", "how", "shape"):
        table.add_column(heading, overflow="fold")
    table.add_column("tensors", justify="right")
    for alike, fates in groups.items():
        shown = alike if len(fates) > 1 else fates[0]
        renamed = shown.key and shown.name and not shown.name.endswith(shown.key)
        name = f"{shown.name}\n  from {shown.key}" if renamed else shown.name or shown.key
        shapes = [" x ".join(map(str, shape)) for shape in (shown.old, shown.new) if shape]
        table.add_row(escape(name), shown.how, " to ".join(dict.fromkeys(shapes)), str(len(fates)))
    return table
