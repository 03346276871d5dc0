"""A function of images captured as a CUDA graph, once a shape: later calls launch it whole, from fixed memory."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

_WARMUPS = 2  # compiling kernels and choosing cuBLAS algorithms must not be captured
PIECE = 1 << 20  # bytes of uint8 images; of fewer, beginning a copy takes as long as the copy
CAPTURE = Lock()  # beginning one waits for the whole device, which a capture in another thread would not survive


class Pinned:
    """Page-locked memory beside some of the device: images pass it on their way up, outputs on their way down.

    Copies from and to it run beside what the CPU does.
    """

    def __init__(self, images: Tensor, outputs: Sequence[Tensor]) -> None:
        """images, outputs: on the device."""
        staged, *self._down = (torch.empty_like(x, device="cpu", pin_memory=True) for x in (images, *outputs))
        self.images, self.outputs = images, outputs
        pieces = (x.view(-1).split(PIECE) for x in (staged, images))
        self._up = list(zip(*pieces, strict=True))
        self._given: tuple[Tensor, ...] = ()

    def upload(self, images: Tensor) -> None:
        """Begin to copy images to the device, on the current stream: pieces are on their way while others are staged.

        Nothing of an earlier upload may be under way.
        """
        for source, (staged, there) in zip(images.view(-1).split(PIECE), self._up, strict=True):
            staged.copy_(source)
            there.copy_(staged, non_blocking=True)

    def download(self) -> None:
        """Begin to copy the outputs to the host, on the current stream."""
        for pinned, output in zip(self._down, self.outputs, strict=True):
            pinned.copy_(output, non_blocking=True)
        # written while the device computes: a first write to memory waits for its pages
        self._given = tuple(torch.zeros_like(pinned, pin_memory=False) for pinned in self._down)

    def take(self) -> tuple[Tensor, ...]:
        """The outputs, once their download is done, in memory of the caller's own."""
        given, self._given = self._given, ()
        for mine, pinned in zip(given, self._down, strict=True):
            mine.copy_(pinned)
        return given


class Captured:
    """One shape, from `input` to `outputs`, which the next replay writes over."""

    def __init__(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, stream: Any, pool: Any
    ) -> None:
        self._stream, self._graph = stream, torch.cuda.CUDAGraph()
        self.input = torch.empty_like(images, device=stream.device)
        # weights and constants may still be on their way there
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            self.input.copy_(images)
            for _ in range(_WARMUPS):
                function(self.input)
        stream.synchronize()
        # other threads may allocate meanwhile
        with CAPTURE, torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.outputs = function(self.input)
        self._pinned = Pinned(self.input, self.outputs)

    def replay(self) -> None:
        self._graph.replay()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        try:
            with torch.cuda.stream(self._stream):
                self._pinned.upload(images)
                self.replay()
                self._pinned.download()
        finally:
            # after an error too: the next call writes to memory that copies may be reading
            self._stream.synchronize()
        return self._pinned.take()


class Graphs:
    """The graphs of a function by shape, the least recently used dropped past `capacity`.

    They share memory for what they compute, for they run one after the other on one stream and results are copied out
    at once. images: on the host, in C order; outputs are there too, in memory of the caller's own.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]], capacity: int = 8) -> None:
        self._function, self._capacity = function, capacity
        # PyTorch deals out 32 of a priority in turn, and the 33rd is the first again: of another priority, no capture
        # meets the copies of another engine
        self.stream = torch.cuda.Stream(priority=-1)
        self.up, self.down = torch.cuda.Stream(), torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: OrderedDict[tuple[int, ...], Captured] = OrderedDict()
        self._lanes: WeakSet[GraphLane] = WeakSet()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.of(images)(images)

    def of(self, images: Tensor) -> Captured:
        """The graph for images of this shape, captured if it is new."""
        shape = tuple(images.shape)
        if shape not in self._captured:
            if len(self._captured) == self._capacity:
                # a lane's batch may be under way in the one that goes
                self.stream.synchronize()
                self._captured.popitem(last=False)
            self._captured[shape] = Captured(self._function, images, self.stream, self._pool)
        self._captured.move_to_end(shape)
        return self._captured[shape]

    def lanes(self, count: int = 2) -> "list[GraphLane]":
        """New ones, to be freed by whom they are for."""
        lanes = [GraphLane(self) for _ in range(count)]
        self._lanes.update(lanes)
        return lanes

    def close(self) -> None:
        """Give back all memory, that of lanes too, once nothing is under way in it."""
        for lane in list(self._lanes):
            lane.free()
        _settle(self.stream)
        self._captured.clear()


class GraphLane:
    """What a `Lane` is to plans, around captured graphs: a batch on its way up and back, in memory of its own.

    It is kept for the next batch of its shape. Two lanes overlap: while one computes, the other is emptied and filled.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._graphs, self._whole = graphs, torch.cuda.Event()
        self._memory: Pinned | None = None

    def submit(self, images: Tensor) -> None:
        """Begin a batch. The one before was collected: then nothing is under way in this memory, on any stream."""
        graphs, graph = self._graphs, self._graphs.of(images)
        memory = self._fitted(graph)
        with torch.cuda.stream(graphs.up):
            memory.upload(images)
        graphs.stream.wait_stream(graphs.up)
        with torch.cuda.stream(graphs.stream):
            graph.input.copy_(memory.images)
            graph.replay()
            for mine, output in zip(memory.outputs, graph.outputs, strict=True):
                mine.copy_(output)
        graphs.down.wait_stream(graphs.stream)
        with torch.cuda.stream(graphs.down):
            memory.download()
            self._whole.record()

    def collect(self) -> tuple[Tensor, ...]:
        """Wait for the batch; its outputs, the caller's own."""
        assert self._memory is not None, "nothing was submitted"
        self._whole.synchronize()
        return self._memory.take()

    def free(self) -> None:
        """Give its memory back once nothing is under way in it; twice is as good as once."""
        _settle(self._graphs.up, self._graphs.stream, self._graphs.down)
        self._memory = None

    def _fitted(self, graph: Captured) -> Pinned:
        """Its memory for what the graph takes and makes."""
        if self._memory is None or self._memory.images.shape != graph.input.shape:
            self._memory = None
            # each of the stream that writes to it: what was given back there before is out of use only there
            with torch.cuda.stream(self._graphs.up):
                images = torch.empty_like(graph.input)
            with torch.cuda.stream(self._graphs.stream):
                outputs = tuple(torch.empty_like(output) for output in graph.outputs)
            self._memory = Pinned(images, outputs)
        return self._memory


def _settle(*streams: Any) -> None:
    for stream in streams:
        with suppress(RuntimeError):  # of a device that has failed there is nothing to wait for
            stream.synchronize()
