"""Loads and stores, and copies of bytes that run beside the program."""

import re
from typing import Any

import numpy as np

from tests.kernels.emulator.block import STORED, Array, Block, Copies, Step
from tests.kernels.emulator.ptx import (
    Address,
    Constant,
    Instruction,
    Kernel,
    Name,
    NotKnownError,
    Operand,
    Register,
    bits_of,
    parts_of,
)


def load(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    to, address = parts_of(instruction.operands[0]), instruction.operands[1]
    size, of_global = int(found["bits"]) // 8, found["space"] == "global"

    def run(block: Block) -> None:
        lanes = block.lanes()
        at = block.addresses(address, lanes)
        count = size * len(to)
        data = block.launch.memory.read(at, count) if of_global else block.shared.read(at, count, block.warp[lanes])
        for part, values in zip(to, data.view(f"u{size}").T, strict=True):
            _scatter(block, part, values, lanes)

    return run


def _scatter(block: Block, to: Operand, values: Array, lanes: Array) -> None:
    assert isinstance(to, Register)
    kind = STORED[to.bits]
    old = block.registers[to.index]
    out = np.zeros(block.threads, kind) if old is None else old.copy()
    out[lanes] = values.astype(kind)
    block.replace(to, out)


def store(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    address, source = instruction.operands[0], parts_of(instruction.operands[1])
    size, of_global = int(found["bits"]) // 8, found["space"] == "global"

    def run(block: Block) -> None:
        lanes = block.lanes()
        words = [block.of_all(each, bits_of(each, max(8 * size, 16)))[lanes] for each in source]
        data = np.stack(words, axis=-1).astype(f"u{size}").view(np.uint8)
        at = block.addresses(address, lanes)
        if of_global:
            block.launch.memory.write(at, data)
        else:
            block.shared.write(at, data, block.warp[lanes])

    return run


def parameter(instruction: Instruction, *_: Any) -> Step:
    to, address = instruction.operands
    assert isinstance(to, Register)
    assert isinstance(address, Address)
    assert isinstance(address.base, Name)
    name = address.base.text

    def run(block: Block) -> None:
        block.put(to, np.array([block.launch.arguments[name] % (1 << to.bits)], f"u{to.bits // 8}"))

    return run


def copy(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    to, source, size, *given = instruction.operands
    assert isinstance(size, Constant)
    count = size.bits

    def run(block: Block) -> None:
        lanes = block.lanes()
        sizes = block.of_all(given[0], 32) if given else np.full(block.threads, count)
        if not np.isin(sizes[lanes], (0, count)).all():
            raise NotKnownError("a copy of a part")
        data = np.zeros((len(lanes), count), np.uint8)
        full = sizes[lanes] == count
        if full.any():
            data[full] = block.launch.memory.read(block.addresses(source, lanes)[full], count)
        brought = block.shared.begin_copy(block.addresses(to, lanes), data, block.warp[lanes])
        cells = np.zeros((block.threads, brought.shape[1]), brought.dtype)
        cells[lanes] = brought
        left = np.zeros(block.threads, bool)
        left[lanes] = True
        block.copies.append(Copies(block.committed, left, cells))

    return run


def commit_copies(*_: Any) -> Step:
    def run(block: Block) -> None:
        block.committed = block.committed.copy()
        block.committed[block.lanes()] += 1

    return run


def wait_copies(instruction: Instruction, *_: Any) -> Step:
    (most,) = instruction.operands
    assert isinstance(most, Constant)

    def run(block: Block) -> None:
        here = np.zeros(block.threads, bool)
        here[block.lanes()] = True
        for copy in block.copies:
            done = np.nonzero(copy.left & here & (copy.group < block.committed - most.bits))[0]
            if len(done):
                block.shared.end_copy(copy.cells[done], block.warp[done])
                copy.left[done] = False
        block.copies = [copy for copy in block.copies if copy.left.any()]

    return run


def fence(*_: Any) -> Step:
    return lambda block: block.shared.fence(np.unique(block.warp[block.lanes()]))
