"""A function of images captured as a CUDA graph, once a shape: later calls launch it whole, from fixed memory."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

_WARMUPS = 2  # compiling kernels and choosing cuBLAS algorithms must not be captured
CAPTURE = Lock()  # beginning one waits for the whole device, which a capture in another thread would not survive


class Captured:
    """One shape. Host memory is pinned, so that copies run on the stream and only the last step waits."""

    def __init__(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, stream: Any, pool: Any
    ) -> None:
        self._stream, self._graph = stream, torch.cuda.CUDAGraph()
        self._staged = torch.empty_like(images).pin_memory()
        self._input = torch.empty_like(images, device="cuda")
        # weights and constants may still be on their way there
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._input.copy_(images)
            for _ in range(_WARMUPS):
                function(self._input)
        stream.synchronize()
        # other threads may allocate meanwhile
        with CAPTURE, torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._outputs = function(self._input)
        self._results = tuple(torch.empty_like(x, device="cpu").pin_memory() for x in self._outputs)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs in pinned memory, which the next call writes over."""
        self._staged.copy_(images)
        with torch.cuda.stream(self._stream):
            self._input.copy_(self._staged, non_blocking=True)
            self._graph.replay()
            for result, output in zip(self._results, self._outputs, strict=True):
                result.copy_(output, non_blocking=True)
        self._stream.synchronize()
        return self._results


class Graphs:
    """The graphs of a function by shape, the least recently used dropped past `capacity`.

    They share memory for what they compute, for they run one after the other and results are copied out at once.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]], capacity: int = 8) -> None:
        self._function, self._capacity = function, capacity
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._captured: OrderedDict[tuple[int, ...], Captured] = OrderedDict()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        shape = tuple(images.shape)
        if shape not in self._captured:
            if len(self._captured) == self._capacity:
                self._captured.popitem(last=False)
            self._captured[shape] = Captured(self._function, images, self._stream, self._pool)
        self._captured.move_to_end(shape)
        return self._captured[shape](images)
