"""Memory that says who may touch what: arrays with an end, and shared memory whose threads must wait for each other."""

import ctypes
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
START = 1024  # of shared memory, so that address 0 is nobody's; swizzles repeat every 1024 bytes


class FaultError(Exception):
    """What a GPU would answer with an error, or with a result that depends on who came first."""


class Global:
    """The arrays that a kernel was given, by their addresses."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        spans: list[tuple[int, int, str]] = []
        for start, end, name in sorted((x.data_ptr(), _end(x), name) for name, x in tensors.items() if x.numel()):
            if spans and start < spans[-1][1]:  # two arguments of one array
                first, last, names = spans.pop()
                start, end, name = first, max(last, end), f"{names}, {name}"
            spans.append((start, end, name))
        self._names = [name for _, _, name in spans]
        self._starts = np.array([start for start, _, _ in spans], np.int64)
        self._ends = np.array([end for _, end, _ in spans], np.int64)
        self._bytes = [_view(start, end) for start, end, _ in spans]

    def read(self, at: Array, size: int) -> Array:
        """[lanes, size] bytes."""
        out = np.empty((len(at), size), np.uint8)
        for array, lanes in self._found(at, size, "reads"):
            first = at[lanes] - self._starts[array]
            out[lanes] = self._bytes[array][first[:, None] + np.arange(size)]
        return out

    def write(self, at: Array, data: Array) -> None:
        for array, lanes in self._found(at, data.shape[1], "writes"):
            first = at[lanes] - self._starts[array]
            self._bytes[array][first[:, None] + np.arange(data.shape[1])] = data[lanes]

    def _found(self, at: Array, size: int, what: str) -> list[tuple[int, Any]]:
        if (at % size).any():
            raise FaultError(f"{what} {size} bytes of global memory at an address that is no multiple of {size}")
        array = np.searchsorted(self._starts, at, side="right") - 1
        if not self._names:
            raise FaultError(f"{what} {size} bytes where there is no array")
        outside = (array < 0) | (at + size > self._ends[array])
        if outside.any():
            near = max(0, int(array[outside][0]))
            where = f"{int(at[outside][0] - self._starts[near])} of {self._names[near]}"
            raise FaultError(f"{what} {size} bytes outside of all arrays, at byte {where}")
        used = np.unique(array)
        if len(used) == 1:
            return [(int(used[0]), slice(None))]
        return [(int(each), np.nonzero(array == each)[0]) for each in used]


def _end(x: torch.Tensor) -> int:
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr() + (last + 1) * x.element_size()


def _view(start: int, end: int) -> Array:
    return np.ctypeslib.as_array((ctypes.c_uint8 * (end - start)).from_address(start))


class Shared:
    """Shared memory of one thread block, NaN at first.

    Between two barriers no warp may read what another wrote, nor write what another read or wrote. What a copy brings
    is nobody's until it was waited for; what a copy or a product reads stays as it is until then, and had to be fenced
    where the program wrote it, as had what a copy of a tensor overwrites (PTX ISA 8.8, 8.7 and 9.7.13.4). Lanes of a
    warp are taken to be in step.
    granule: bytes of which it is known who touched them.
    """

    def __init__(self, size: int, granule: int) -> None:
        self.size, self._granule = size, granule
        self._bytes = np.full(size, 0xFF, np.uint8)
        cells = -(-size // granule)
        self._epoch = 1
        self._written, self._writer = np.zeros(cells, np.int32), np.zeros(cells, np.int32)
        self._read, self._readers = np.zeros(cells, np.int32), np.zeros(cells, np.uint32)
        self._wrote, self._used = np.zeros(cells, np.int16), np.zeros(cells, np.int16)  # unfenced: warp + 1
        self._brought, self._held = np.zeros(cells, np.int16), np.zeros(cells, np.int16)

    def barrier(self) -> None:
        """All threads have come here."""
        self._epoch += 1

    def fence(self, warps: Array) -> None:
        """What `warps` did, and all that was done before the last barrier, comes before later copies and products."""
        for state, done in ((self._wrote, self._written), (self._used, self._read)):
            state[np.isin(state, warps + 1) | (done < self._epoch)] = 0

    def read(self, at: Array, size: int, warps: Array) -> Array:
        """[lanes, size] bytes that lanes of `warps` [lanes] read."""
        index = self._index(at, size, "reads")
        cells = self._cells(index)
        self._reads(cells, warps)
        self._used[cells] = warps[:, None] + 1
        return self._bytes[index]

    def write(self, at: Array, data: Array, warps: Array) -> None:
        """[lanes, size] bytes by lanes of `warps` [lanes]."""
        index = self._index(at, data.shape[1], "writes")
        cells = self._cells(index)
        self._writes(cells, warps)
        self._wrote_by(cells, warps)
        self._bytes[index] = data
        if (self._bytes[index] != data).any():
            raise FaultError("two threads write different values to one byte of shared memory at once")

    def touch_barrier(self, at: Array, warps: Array, *, new: bool = False) -> None:
        """An mbarrier of 8 bytes is made or given up by a warp (new), or used by warps."""
        if new:
            self.write(at, np.zeros((len(at), 8), np.uint8), warps)
        else:
            self._reads(self._cells(self._index(at, 8, "reads")), warps)
        self._wrote[self._cells(self._index(at, 8, "reads"))] = 0

    def begin_copy(self, at: Array, data: Array, warps: Array, *, by_unit: bool = False) -> Array:
        """As `write`, by copies that lanes of `warps` begin; [lanes, n] cells that they bring."""
        index = self._index(at, data.shape[1], "writes")
        cells = self._cells(index)
        self._writes(cells, warps)
        if by_unit and (self._wrote[cells].any() or self._used[cells].any()):
            raise FaultError("a copy overwrites shared memory that was read or written and not fenced")
        self._brought[cells] += 1
        self._bytes[index] = data
        return cells

    def end_copy(self, cells: Array, warps: Array | None) -> None:
        """Lanes of `warps` waited for their copies; None: all were told of one by a barrier of its own."""
        self._brought[cells] -= 1
        self._written[cells] = 0
        if warps is not None:
            self._wrote_by(cells, warps)

    def _wrote_by(self, cells: Array, warps: Array) -> None:
        self._written[cells], self._writer[cells] = self._epoch, warps[:, None]
        self._wrote[cells] = warps[:, None] + 1

    def hold(self, at: Array, size: int, warps: Array) -> tuple[Array, Array]:
        """[lanes, size] bytes that a copy or product of `warps` reads, and the cells to `release` when it is over."""
        index = self._index(at, size, "reads")
        cells = np.unique(self._cells(index))
        if self._wrote[cells].any():
            raise FaultError("a copy or product reads shared memory that was written and not fenced")
        for warp in warps:
            self._reads(cells[None], np.array([warp]))
        self._held[cells] += 1
        return self._bytes[index], cells

    def release(self, cells: Array, warps: Array) -> None:
        """It is over for `warps`, each of which knows that of itself alone."""
        self._held[cells] -= 1
        for warp in warps:
            self._mark(cells[None], np.array([warp]))

    def _writes(self, cells: Array, warps: Array) -> None:
        by = warps[:, None]
        if self._held[cells].any():
            raise FaultError("writes shared memory that a copy or product still reads")
        if self._brought[cells].any():
            raise FaultError("writes shared memory that a copy still brings")
        if ((self._written[cells] == self._epoch) & (self._writer[cells] != by)).any():
            raise FaultError("a warp writes shared memory that another writes, without a barrier between")
        others = self._readers[cells] & ~(np.uint32(1) << by.astype(np.uint32))
        if ((self._read[cells] == self._epoch) & (others != 0)).any():
            raise FaultError("a warp writes shared memory that another reads, without a barrier between")

    def _reads(self, cells: Array, warps: Array) -> None:
        if self._brought[cells].any():
            raise FaultError("reads shared memory that a copy still brings")
        if ((self._written[cells] == self._epoch) & (self._writer[cells] != warps[:, None])).any():
            raise FaultError("a warp reads shared memory that another writes, without a barrier between")
        self._mark(cells, warps)

    def _mark(self, cells: Array, warps: Array) -> None:
        """As read since the last barrier."""
        fresh = cells[self._read[cells] != self._epoch]
        self._read[fresh], self._readers[fresh] = self._epoch, 0
        for warp in np.unique(warps):
            self._readers[cells[warps == warp]] |= np.uint32(1 << int(warp))

    def _index(self, at: Array, size: int, what: str) -> Array:
        first = at.astype(np.int64) - START
        if (first % size).any():
            raise FaultError(f"{what} {size} bytes of shared memory at an address that is no multiple of {size}")
        wrong = (first < 0) | (first + size > self.size)
        if wrong.any():
            raise FaultError(
                f"{what} {size} bytes at byte {int(first[wrong][0])} of {self.size} bytes of shared memory"
            )
        return first[:, None] + np.arange(size)

    def _cells(self, index: Array) -> Array:
        return index[:, :: self._granule] // self._granule
