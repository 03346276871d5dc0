"""Launches as on a GPU, without one: tensors hold nothing, arguments are specialised, and nothing compiled is run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from segmenter_kernels import checks, tiles

META = torch.device("meta")
MULTIPROCESSORS = 132  # an H100's
MOST_ROWS_OF_PROGRAMS = 65535  # along the second and third axis of a grid


class _Driver:
    """As much of one as a launch asks that only compiles."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def gpu(architecture: int, compile: Callable[..., Any], multiprocessors: int = MULTIPROCESSORS) -> Iterator[None]:
    """Within it ops take tensors of `META`, or any, and launch nothing. For a process of its own.

    compile: takes the place of Triton's compiler, with a source, `target` and `options`, at every launch.
    multiprocessors: the GPU's, of which persistent programs fill all.
    """
    right = JITFunction.run

    def run(self: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> Any:
        assert all(size > 0 for size in grid), grid
        assert all(size <= MOST_ROWS_OF_PROGRAMS for size in grid[1:]), grid
        # so that a form compiled before is compiled again
        self.device_caches.clear()
        return right(self, *arguments, grid=grid, warmup=True, **named)

    def of_device(op: str, case: str, device: torch.device) -> tiles.Tile:
        return tiles.of_architecture(op, case, architecture)

    changed = (
        (triton.compiler, "compile", compile),
        # reset, it would look for a real one
        (driver, "_active", _Driver(architecture)),
        (JITFunction, "run", run),
        (checks, "on_gpu", lambda *_, **__: None),
        (tiles, "architecture_of", lambda device: architecture),
        (tiles, "of_device", of_device),
        (torch.cuda, "get_device_properties", lambda _=None: SimpleNamespace(multi_processor_count=multiprocessors)),
    )
    with ExitStack() as stack:
        for place, name, instead in changed:
            stack.enter_context(patch.object(place, name, instead))
        yield


def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)
