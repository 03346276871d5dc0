"""Tables that a launch reads, made on the host and kept on the GPU for the arguments used last.

A CUDA graph holds the addresses of what it reads, for as long as it is replayed: tables that were used while one was
captured are kept for good. One that another stream than its own reads is given back only once that stream is done.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmenter_kernels import checks

Arrays = tuple[np.ndarray, ...]


class Tables:
    """What a function makes of its arguments, on a device.

    Raises ValueError, on behalf of `op`, where a table would have to be made while a CUDA graph is captured.
    """

    def __init__(self, op: str, make: Callable[..., Arrays], most: int) -> None:
        self._op, self._make = op, make
        self._made = lru_cache(most)(self._copied)
        self._captured: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}

    def __call__(self, device: torch.device, *arguments: Any) -> tuple[Tensor, ...]:
        key = (device, *arguments)
        found = self._captured.get(key) or self._made(*key)
        if _capturing(device):
            self._captured[key] = found
        elif device.type == "cuda":
            for table in found:
                table.record_stream(torch.cuda.current_stream(device))
        return found

    def _copied(self, device: torch.device, *arguments: Any) -> tuple[Tensor, ...]:
        message = f"a table of {arguments} would be copied to {device} while a CUDA graph is captured"
        checks.require(not _capturing(device), self._op, f"{message}; make the call once before that")
        return tuple(torch.from_numpy(array).to(device) for array in self._make(*arguments))


def kept(op: str, most: int) -> Callable[[Callable[..., Arrays]], Tables]:
    """For a function that makes tables of its arguments: it takes a device before them, and keeps `most` results."""
    return lambda make: Tables(op, make, most)


def _capturing(device: torch.device) -> bool:
    """Whether what is launched now on the device, the current one, becomes part of a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
