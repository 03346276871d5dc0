"""What a tensor map says, and the barriers that copies by tensor maps complete.

PTX ISA 8.8, 5.5 (tensors and their swizzles), 9.7.9.25 (cp.async.bulk.tensor) and 9.7.13.15 (mbarrier).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tests.kernels.emulator.matrix import swizzled
from tests.kernels.emulator.memory import Array, FaultError


@dataclass(frozen=True)
class TensorMap:
    """A tensor in global memory and the box that is copied of it; sizes outermost first, swizzle as CUDA counts it."""

    tensor: torch.Tensor
    shape: Sequence[int]
    strides: Sequence[int]
    box: Sequence[int]
    swizzle: int

    def places(self, start: int, at: Sequence[int]) -> tuple[Array, Array, Array]:
        """Of the box whose first element is at a place (innermost first).

        Offsets of elements in the tensor, addresses in shared memory for a box that starts at `start`, and whether an
        element is inside the tensor.
        """
        index = np.meshgrid(
            *(first + np.arange(size) for first, size in zip(reversed(at), self.box, strict=True)), indexing="ij"
        )
        inside = np.ones(self.box, bool)
        offset = np.zeros(self.box, np.int64)
        for each, size, stride in zip(index, self.shape, self.strides, strict=True):
            inside &= (each >= 0) & (each < size)
            offset += each * stride
        element = self.tensor.element_size()
        address = start + np.arange(offset.size) * element
        span = 16 << self.swizzle
        if start % 128 or (self.swizzle and self.box[-1] * element > span):
            raise FaultError(f"a box of {list(self.box)} at {start}, swizzled by {span} bytes")
        return offset.ravel(), swizzled(address, span) if self.swizzle else address, inside.ravel()


class Barrier:
    """An mbarrier: a phase is over when all have arrived and all bytes that were announced are there."""

    def __init__(self, count: int) -> None:
        self._count = self._pending = count
        self._bytes = 0
        self._phase = 0

    def arrive(self, announced: int = 0) -> None:
        if not self._pending:
            raise FaultError("more arrive at an mbarrier than it expects")
        self._bytes += announced
        self._pending -= 1
        self._next()

    def complete(self, size: int) -> None:
        self._bytes -= size
        self._next()

    def over(self, parity: int) -> bool:
        """Whether the phase of that parity is."""
        return self._phase % 2 != parity

    def _next(self) -> None:
        if self._pending == 0 and self._bytes == 0:
            self._phase += 1
            self._pending = self._count
