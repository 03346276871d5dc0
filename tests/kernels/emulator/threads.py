"""Instructions of threads alone or of a warp together: arithmetic, branches, what threads tell each other."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.kernels.emulator import arithmetic
from tests.kernels.emulator.block import STORED, Block, Step
from tests.kernels.emulator.ptx import (
    END,
    WARP,
    Constant,
    Instruction,
    Kernel,
    Name,
    NotKnownError,
    Operand,
    Register,
    Vector,
)


def guarded(instruction: Instruction, act: Step) -> Step:
    """Done by the threads that pass its guard."""
    guard, unless = instruction.guard, instruction.unless
    if guard is None:
        return act

    def run(block: Block) -> None:
        before, passed = block.mask, block.values(guard, STORED[1])
        passed = ~passed if unless else passed
        passed = passed if before is None else passed & before
        if passed.any():
            block.mask = None if passed.all() else passed
            act(block)
        block.mask = before

    return run


def computed(instruction: Instruction) -> Step:
    op, operands = instruction.op, instruction.operands
    if op.startswith("mov.") and any(isinstance(each, Vector) for each in operands):
        return _packed(operands)
    function, sources = arithmetic.entry(op)
    kinds = [arithmetic.TYPES[each] for each in sources]
    pairs = any(each.endswith("x2") for each in sources)
    moved = op.startswith("mov.")
    to = operands[0]
    assert isinstance(to, Register)
    read = list(zip(operands[1:], kinds, strict=True))
    # of a register wider than what is read, the low part is
    parts = [
        max(1, each.bits // (8 * kind.itemsize)) if isinstance(each, Register) and not pairs else 1
        for each, kind in read
    ]

    def run(block: Block) -> None:
        if moved and isinstance(operands[1], Register) and operands[1].index in block.sums:
            block.follow(to, operands[1])
            return
        values = [block.values(operand, kind)[::part] for (operand, kind), part in zip(read, parts, strict=True)]
        if pairs:
            values = [each.reshape(-1, 2) for each in values]
        block.put(to, function(*values).ravel())
        if moved and isinstance(operands[1], Register) and operands[1].index not in block.changed - block.copied:
            block.copied.add(to.index)

    return run


def _packed(operands: Sequence[Operand]) -> Step:
    to, source = operands

    def run(block: Block) -> None:
        if isinstance(source, Vector):
            assert isinstance(to, Register)
            kind = STORED[to.bits // len(source.parts)]
            parts = [np.broadcast_to(block.values(each, kind), (block.threads,)) for each in source.parts]
            block.put(to, np.ascontiguousarray(np.stack(parts, axis=-1)).view(STORED[to.bits])[:, 0])
            return
        assert isinstance(to, Vector)
        assert isinstance(source, Register)
        kind = STORED[source.bits // len(to.parts)]
        parts_of = block.values(source, STORED[source.bits]).view(kind).reshape(-1, len(to.parts))
        for each, values in zip(to.parts, parts_of.T, strict=True):
            block.put(each, values)

    return run


def branch(instruction: Instruction, _: Any, kernel: Kernel) -> Step:
    (label,) = instruction.operands
    assert isinstance(label, Name)
    target = kernel.labels[label.text]

    def run(block: Block) -> None:
        block.at[block.lanes()] = target

    return run


def end(*_: Any) -> Step:
    def run(block: Block) -> None:
        block.at[block.lanes()] = END

    return run


def barrier(instruction: Instruction, *_: Any) -> Step:
    if instruction.operands != (Constant(0),):
        raise NotKnownError(instruction.text)

    def run(block: Block) -> None:
        block.whole_warps()
        block.waits[block.lanes()] = True

    return run


def nothing(*_: Any) -> Step:
    return lambda block: None


def shuffle(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    to, source, which, limit, members = instruction.operands
    if limit != Constant(31) or members != Constant(-1):
        raise NotKnownError(instruction.text)

    def run(block: Block) -> None:
        block.whole_warps()
        values = block.of_all(source, 32)
        by = block.of_all(which, 32).astype(np.int64) % WARP
        other = block.lane ^ by if found["how"] == "bfly" else block.warp * WARP + by
        block.put(to, values[other])

    return run


def elect(instruction: Instruction, *_: Any) -> Step:
    to = instruction.operands[0]
    assert isinstance(to, Vector)

    def run(block: Block) -> None:
        block.whole_warps()
        block.put(to.parts[0], np.zeros(1, np.uint32))
        block.put(to.parts[1], block.lane % WARP == 0)

    return run


def reduced(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    to, source, members = instruction.operands
    function = {"min": np.min, "max": np.max}[found["how"]]
    kind = arithmetic.TYPES[found["kind"]]

    def run(block: Block) -> None:
        block.whole_warps()
        if (block.of_all(members, 32) != 0xFFFFFFFF).any():
            raise NotKnownError(instruction.text)
        values = np.broadcast_to(block.values(source, kind), (block.threads,)).reshape(-1, WARP)
        block.put(to, np.repeat(function(values, axis=1), WARP))

    return run
