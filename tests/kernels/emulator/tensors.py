"""Copies of tensors by their maps, and the barriers in shared memory that tell when they are done."""

from typing import Any

import numpy as np

from tests.kernels.emulator.block import Array, AsyncGroup, Block, Step
from tests.kernels.emulator.memory import FaultError
from tests.kernels.emulator.ptx import WARP, Address, Constant, Instruction, NotKnownError, Operand
from tests.kernels.emulator.tensor_maps import Barrier, TensorMap


def _barrier_at(block: Block, address: Operand, lane: int) -> int:
    return int(block.addresses(address, np.array([lane]))[0])


def _single(block: Block) -> int:
    """The one thread that is meant."""
    lanes = block.lanes()
    if len(lanes) > 1:
        raise NotKnownError("more than one thread of an mbarrier")
    return int(lanes[0])


def _known(block: Block, at: int) -> Barrier:
    if at not in block.barriers:
        raise FaultError("an mbarrier that was not made")
    return block.barriers[at]


def _touch(block: Block, at: int, *, new: bool = False) -> None:
    """The warps that are here make or use an mbarrier."""
    warps = np.unique(block.warp[block.lanes()])
    block.shared.touch_barrier(np.full(len(warps), at), warps, new=new)


def make_barrier(instruction: Instruction, *_: Any) -> Step:
    address, count = instruction.operands
    assert isinstance(count, Constant)

    def run(block: Block) -> None:
        at = _barrier_at(block, address, _single(block))
        if at % 8 or at in block.barriers:
            raise FaultError("an mbarrier over another one, or at an address that is no multiple of 8")
        block.barriers[at] = Barrier(count.bits)
        _touch(block, at, new=True)

    return run


def drop_barrier(instruction: Instruction, *_: Any) -> Step:
    (address,) = instruction.operands

    def run(block: Block) -> None:
        at = _barrier_at(block, address, _single(block))
        if block.loads.get(at):
            raise FaultError("an mbarrier is given up while a copy will still complete it")
        _known(block, at)
        _touch(block, at, new=True)
        del block.barriers[at]

    return run


def arrive(instruction: Instruction, *_: Any) -> Step:
    _, address, announced = instruction.operands
    assert isinstance(announced, Constant)

    def run(block: Block) -> None:
        at = _barrier_at(block, address, _single(block))
        _touch(block, at)
        _known(block, at).arrive(announced.bits)

    return run


def try_wait(instruction: Instruction, *_: Any) -> Step:
    to, address, parity = instruction.operands

    def run(block: Block) -> None:
        block.all_here()
        at = np.unique(block.addresses(address, block.lane))
        wanted = np.unique(block.of_all(parity, 32))
        if len(at) > 1 or len(wanted) > 1:
            raise NotKnownError("threads that wait for different mbarriers")
        _touch(block, int(at[0]))
        barrier = _known(block, int(at[0]))
        if not barrier.over(int(wanted[0])):
            raise FaultError("waits for an mbarrier that nothing completes")
        for cells in block.loads.pop(int(at[0]), []):
            block.shared.end_copy(cells, None)
        block.put(to, np.ones(1, bool))

    return run


def _box_of(block: Block, address: Operand, shared: Operand, lane: int) -> tuple[TensorMap, Array, Array, Array]:
    """The map that a thread copies by, and the places of its box there and in shared memory, see `TensorMap.places`."""
    assert isinstance(address, Address)
    at = int(block.addresses(Address(address.base), np.array([lane]))[0])
    if at not in block.launch.maps:
        raise FaultError("an address that is no tensor map's")
    where = [int(block.of_all(each, 32)[lane].view(np.int32)) for each in address.coordinates]
    start = int(block.addresses(shared, np.array([lane]))[0])
    return block.launch.maps[at], *block.launch.maps[at].places(start, where)


def load_tensor(instruction: Instruction, *_: Any) -> Step:
    to, source, barrier_address = instruction.operands

    def run(block: Block) -> None:
        for lane in block.lanes():
            begin(block, int(lane))

    def begin(block: Block, lane: int) -> None:
        tensor_map, offset, address, inside = _box_of(block, source, to, lane)
        at = _barrier_at(block, barrier_address, lane)
        barrier = _known(block, at)
        block.shared.touch_barrier(np.array([at]), np.array([lane // WARP]))
        size = tensor_map.tensor.element_size()
        data = np.zeros((len(offset), size), np.uint8)
        if inside.any():
            data[inside] = block.launch.memory.read(tensor_map.tensor.data_ptr() + offset[inside] * size, size)
        cells = block.shared.begin_copy(address, data, np.full(len(address), lane // WARP), by_unit=True)
        block.loads.setdefault(at, []).append(np.unique(cells))
        barrier.complete(data.size)

    return run


def store_tensor(instruction: Instruction, *_: Any) -> Step:
    to, source = instruction.operands

    def run(block: Block) -> None:
        for lane in block.lanes():
            begin(block, int(lane))

    def begin(block: Block, lane: int) -> None:
        tensor_map, offset, address, inside = _box_of(block, to, source, lane)
        size = tensor_map.tensor.element_size()
        warps = np.array([lane // WARP])
        data, cells = block.shared.hold(address, size, warps)
        block.stores[-1].cells.append((cells, warps))
        if inside.any():
            block.launch.memory.write(tensor_map.tensor.data_ptr() + offset[inside] * size, data[inside])

    return run


def commit_stores(*_: Any) -> Step:
    def run(block: Block) -> None:
        block.all_here()
        block.stores.append(AsyncGroup())

    return run


def wait_stores(instruction: Instruction, *_: Any) -> Step:
    (most,) = instruction.operands
    assert isinstance(most, Constant)

    def run(block: Block) -> None:
        block.all_here()
        block.wait_for(block.stores, most.bits)

    return run
