"""A thread block: its threads' registers, where each has come to, and what runs beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.kernels.emulator.memory import START, Array, FaultError, Global, Shared
from tests.kernels.emulator.ptx import (
    END,
    WARP,
    Address,
    Constant,
    Kernel,
    Name,
    NotKnownError,
    Operand,
    Register,
    bits_of,
)
from tests.kernels.emulator.tensor_maps import Barrier, TensorMap

Step = Callable[["Block"], None]
STORED = {1: np.dtype(bool), 16: np.dtype(np.uint16), 32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}


@dataclass
class Copies:
    """Copies of bytes that some threads began with one instruction."""

    group: Array  # of each thread, counted by its commits
    left: Array  # threads that have not waited yet
    cells: Array  # of shared memory, by threads


@dataclass
class AsyncGroup:
    """What runs beside the program, committed together: cells of shared memory that it reads, registers it needs."""

    cells: list[tuple[Array, Array]] = field(default_factory=list)  # and the warps for which they are read
    sums: set[int] = field(default_factory=set)
    factors: set[int] = field(default_factory=set)


@dataclass
class Launch:
    """What all blocks of a launch share."""

    kernel: Kernel
    steps: list[list[Step]]
    arguments: dict[str, int]
    maps: dict[int, TensorMap]
    memory: Global
    shared_bytes: int
    granule: int
    grid: tuple[int, int, int]


@dataclass
class Block:
    launch: Launch
    place: tuple[int, int, int]

    def __post_init__(self) -> None:
        self.threads = self.launch.kernel.threads
        self.mask: Array | None = None  # threads that are at this step, None when all are
        self.lane = np.arange(self.threads)
        self.warp = self.lane // WARP
        self.registers: list[Any] = [None] * len(self.launch.kernel.registers)
        self.shared = Shared(self.launch.shared_bytes, self.launch.granule)
        self.barriers: dict[int, Barrier] = {}
        self.committed = np.zeros(self.threads, np.int64)
        self.copies: list[Copies] = []
        self.loads: dict[int, list[Array]] = {}  # cells that copies of tensors bring, by the mbarrier they complete
        self.stores = [AsyncGroup()]  # by groups, the last one not committed
        self.products = [AsyncGroup()]  # the same
        self.sums: set[int] = set()  # registers that products under way write
        self.factors: set[int] = set()  # and that they read
        self.fenced = False  # whether registers ever were
        self.changed: set[int] = set()  # registers written since they were last fenced
        self.copied: set[int] = set()  # those of them that are copies of one that was not
        self.at = np.zeros(self.threads, np.int64)
        self.waits = np.zeros(self.threads, bool)

    def run(self) -> None:
        """Until every thread has ended. Raises FaultError."""
        blocks = self.launch.steps
        while True:
            ready = (self.at != END) & ~self.waits
            if not ready.any():
                if not self.waits.any():
                    break
                self.waits[:] = False
                self.shared.barrier()
                continue
            here = int(self.at[ready].min())
            mask = ready & (self.at == here)
            self.mask = None if mask.all() else mask
            # a step that branches, ends or waits changes this
            self.at[mask] = here + 1
            for step in blocks[here]:
                step(self)
        if self.loads or any(each.cells or each.sums for each in (*self.stores, *self.products)):
            raise FaultError("ends while a copy of a tensor or a product still runs")

    # --- registers

    def values(self, operand: Operand, kind: Any) -> Array:
        """One for each thread, or one for all of them."""
        if isinstance(operand, Register):
            found = self.registers[operand.index]
            if operand.index in self.sums:
                raise FaultError("reads a register that a product is still writing")
            if found is None:
                raise FaultError("reads a register that nothing was written to")
            return found.view(kind)
        return _constant(self, operand, kind)

    def put(self, register: Operand, values: Array) -> None:
        """Write to the threads that are here."""
        if isinstance(register, Name) and register.text == "_":
            return
        assert isinstance(register, Register)
        stored = np.ascontiguousarray(values).view(STORED[register.bits])
        if stored.shape != (self.threads,):
            stored = np.broadcast_to(stored, (self.threads,)).copy()
        before = self.registers[register.index]
        if self.mask is not None and before is not None:
            stored = np.where(self.mask, stored, before)
        self.replace(register, stored)

    def replace(self, register: Register, stored: Array) -> None:
        at = register.index
        if at in self.sums or at in self.factors:
            raise FaultError("writes a register that a product still needs")
        self.changed.add(at)
        self.copied.discard(at)
        self.registers[at] = stored

    def follow(self, to: Register, source: Register) -> None:
        """Copy a register that a product is still writing: the assembler makes one of both, so both are its."""
        self.all_here()
        self.replace(to, self.registers[source.index])
        for each in self.products:
            if source.index in each.sums:
                each.sums.add(to.index)
        self.sums.add(to.index)

    def lanes(self) -> Array:
        """The threads that are here."""
        return self.lane if self.mask is None else np.nonzero(self.mask)[0]

    def of_all(self, operand: Operand, bits: int) -> Array:
        """One for each thread."""
        return np.broadcast_to(self.values(operand, STORED[bits]), (self.threads,))

    def addresses(self, address: Operand, lanes: Array) -> Array:
        assert isinstance(address, Address)
        return self.of_all(address.base, bits_of(address.base, 32))[lanes].astype(np.int64) + address.offset

    def wait_for(self, groups: list[AsyncGroup], most: int) -> None:
        """Until at most so many groups are under way."""
        while len(groups) - 1 > most:
            for cells, warps in groups.pop(0).cells:
                self.shared.release(cells, warps)
        self.sums = set().union(*(each.sums for each in self.products))
        self.factors = set().union(*(each.factors for each in self.products))

    def all_here(self) -> None:
        """Raises NotKnownError where threads do alone what Triton has all of them do."""
        if self.mask is not None:
            raise NotKnownError("some of the threads alone")

    def whole_warps(self) -> Array:
        """The warps that are here, each with all of its threads: raises NotKnownError where others may come later."""
        if self.mask is None:
            return np.arange(self.threads // WARP)
        by_warp = self.mask.reshape(-1, WARP)
        if (by_warp.any(axis=1) != by_warp.all(axis=1)).any():
            raise NotKnownError("an instruction of whole warps without some of their threads")
        return np.nonzero(by_warp.all(axis=1))[0]


def _constant(block: Block, operand: Operand, kind: Any) -> Array:
    if isinstance(operand, Constant):
        if kind.kind == "b":
            return np.array([operand.bits != 0])
        bits = 8 * kind.itemsize
        return np.array([operand.bits % (1 << bits)], f"u{kind.itemsize}").view(kind)
    assert isinstance(operand, Name), operand
    axis = "xyz".find(operand.text[-1])
    if operand.text == "%tid.x":
        return block.lane.astype(np.uint32).view(kind)
    if operand.text == "%laneid":
        return (block.lane % WARP).astype(np.uint32).view(kind)
    if operand.text.startswith("%ctaid."):
        return np.array([block.place[axis]], np.uint32).view(kind)
    if operand.text.startswith("%nctaid."):
        return np.array([block.launch.grid[axis]], np.uint32).view(kind)
    if operand.text in ("%tid.y", "%tid.z"):
        return np.zeros(1, np.uint32).view(kind)
    if operand.text == "global_smem":
        return np.array([START], f"u{kind.itemsize}").view(kind)
    if operand.text in block.launch.arguments:  # the address of a tensor map
        return np.array([block.launch.arguments[operand.text]], f"u{kind.itemsize}").view(kind)
    raise NotKnownError(operand.text)
