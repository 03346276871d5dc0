"""Products of matrices, by a warp or by four of them beside the program."""

import re
from typing import Any

import numpy as np

from tests.kernels.emulator import matrix
from tests.kernels.emulator.block import Array, AsyncGroup, Block, Step
from tests.kernels.emulator.memory import FaultError
from tests.kernels.emulator.ptx import (
    WARP,
    Constant,
    Instruction,
    Kernel,
    NotKnownError,
    Operand,
    Register,
    Vector,
    parts_of,
)


def _by_warp(block: Block, operand: Operand, warps: Array) -> Array:
    """[warps, 32, n] of the registers of a vector."""
    parts = [block.of_all(each, 32) for each in parts_of(operand)]
    return np.stack(parts, axis=-1).reshape(-1, WARP, len(parts))[warps]


def _put_by_warp(block: Block, operand: Operand, values: Array, warps: Array) -> None:
    for at, each in enumerate(parts_of(operand)):
        whole = np.zeros((block.threads // WARP, WARP), np.uint32)
        whole[warps] = values[..., at]
        block.put(each, whole.ravel())


def load_rows(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    to, address = instruction.operands
    count, transposed = int(found["n"]), found["trans"] is not None

    def run(block: Block) -> None:
        warps = block.whole_warps()
        lanes = _row_lanes(block, warps, count)
        data = block.shared.read(block.addresses(address, lanes), 16, block.warp[lanes])
        _put_by_warp(block, to, matrix.load_rows(data.reshape(len(warps), count, 8, 16), transposed), warps)

    return run


def store_rows(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    address, source = instruction.operands
    count, transposed = int(found["n"]), found["trans"] is not None

    def run(block: Block) -> None:
        warps = block.whole_warps()
        lanes = _row_lanes(block, warps, count)
        rows = matrix.store_rows(_by_warp(block, source, warps), transposed)
        block.shared.write(block.addresses(address, lanes), rows.reshape(-1, 16), block.warp[lanes])

    return run


def _row_lanes(block: Block, warps: Array, count: int) -> Array:
    """The threads that give addresses of rows."""
    return (warps[:, None] * WARP + np.arange(8 * count)).ravel()


def product(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    to, a, b, added = instruction.operands
    kind, sum_kind = matrix.KINDS[found["kind"]], matrix.KINDS[found["sum"]]

    def run(block: Block) -> None:
        warps = block.whole_warps()
        out = matrix.product(
            matrix.left(_by_warp(block, a, warps), kind),
            matrix.right(_by_warp(block, b, warps), kind),
            matrix.sums(_by_warp(block, added, warps), sum_kind),
        )
        _put_by_warp(block, to, matrix.of_sums(out), warps)

    return run


def group_product(instruction: Instruction, found: re.Match[str], _: Kernel) -> Step:
    to, a, b, scale, *flags = instruction.operands
    kind, sum_kind = matrix.KINDS[found["kind"]], matrix.KINDS[found["sum"]]
    n = int(found["n"])
    numbers = [each.bits for each in flags if isinstance(each, Constant)]
    if numbers[:2] not in ([], [1, 1]) or len(numbers) != len(flags):
        raise NotKnownError(instruction.text)
    turned = numbers[2:]
    turned_b = bool(turned and turned[-1])
    turned_a = len(turned) == 2 and bool(turned[0])

    def run(block: Block) -> None:
        warps = block.whole_warps()
        if len(warps) % 4 or len(warps) != block.threads // WARP:
            raise NotKnownError("a product of four warps without all warps of the block")
        given = [block.of_all(each, 64) if isinstance(each, Register) else None for each in (a, b)]
        keep = np.broadcast_to(block.values(scale, np.dtype(bool)), (block.threads,))
        factors = {each.index for each in _registers(a)} if isinstance(a, Vector) else set()
        sums = {each.index for each in _registers(to)}
        # of sums Triton copies some after the fence, which the assembler makes one register of
        if not block.fenced or block.changed & factors or (block.changed - block.copied) & sums:
            raise FaultError("a product of registers that were written and not fenced")
        if factors & block.sums:
            raise FaultError("a product of registers that another is still writing")
        group = block.products[-1]
        group.sums |= sums
        group.factors |= factors
        block.sums |= sums
        block.factors |= factors
        before = matrix.sums(_held(block, to, warps), sum_kind)
        out = np.empty_like(before)
        of_a = matrix.left(_held(block, a, warps), kind) if isinstance(a, Vector) else None
        for first in range(0, len(warps), 4):
            at = slice(first, first + 4)
            right = _described(block, given[1], warps[at], n, kind, turned_b)
            if of_a is None:
                left = _described(block, given[0], warps[at], 64, kind, turned_a)
            else:
                left = of_a[at].reshape(64, -1)
            added = before[at].reshape(64, n)
            added = added if keep[first * WARP] else np.zeros_like(added)
            out[at] = matrix.product(left, right, added).reshape(4, 16, n)
        for each, values in zip(_registers(to), np.moveaxis(matrix.of_sums(out), -1, 0), strict=True):
            block.registers[each.index] = np.ascontiguousarray(values).ravel()

    return run


def _registers(operand: Operand) -> list[Register]:
    return [each for each in parts_of(operand) if isinstance(each, Register)]


def _held(block: Block, operand: Operand, warps: Array) -> Array:
    """[warps, 32, n] registers that products have to themselves; NaN where nothing was written."""
    never = np.full(block.threads, 0xFFFFFFFF, np.uint32)
    found = [block.registers[each.index] for each in _registers(operand)]
    parts = [never if each is None else each for each in found]
    return np.stack(parts, axis=-1).reshape(-1, WARP, len(parts))[warps]


def _described(block: Block, given: Array | None, warps: Array, rows: int, kind: Any, turned: bool) -> Array:
    assert given is not None
    descriptors = given.reshape(-1, WARP)[warps]
    if (descriptors != descriptors[0, 0]).any():
        raise FaultError("the warps of a product name different matrices")
    at = matrix.described(int(descriptors[0, 0]), rows, kind, turned)
    data, cells = block.shared.hold(at.ravel(), 16, warps)
    block.products[-1].cells.append((cells, warps))
    return matrix.of_pieces(data.reshape(*at.shape, 16), kind, turned)


def fence_registers(*_: Any) -> Step:
    def run(block: Block) -> None:
        block.all_here()
        block.fenced = True
        block.changed.clear()
        block.copied.clear()

    return run


def commit_products(*_: Any) -> Step:
    def run(block: Block) -> None:
        block.all_here()
        block.products.append(AsyncGroup())

    return run


def wait_products(instruction: Instruction, *_: Any) -> Step:
    (most,) = instruction.operands
    assert isinstance(most, Constant)

    def run(block: Block) -> None:
        block.all_here()
        if block.products[-1].sums:
            raise NotKnownError("waits for products that were not committed")
        block.wait_for(block.products, most.bits)

    return run
