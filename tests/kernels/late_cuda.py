"""A stand-in for `torch.cuda` whose streams do nothing before somebody waits for it, and then only what was waited for.

So memory that is written again too early, or read before it is whole, gives wrong answers, as on a GPU it might.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from segmenter_engines.sessions import cuda_graph

Work = Callable[[], object]
_copy = Tensor.copy_
DEVICE = torch.device("cuda", 1)  # of all streams, and not the one that is current where nobody chose one


class LateStream:
    device = DEVICE

    def __init__(self, cuda: "LateCuda", name: str) -> None:
        self.name, self.cuda = name, cuda
        self.queue: deque[tuple[Work, object]] = deque()

    def enqueue(self, work: Work, owner: object = None) -> None:
        self.queue.append((work, owner))

    def wait_stream(self, other: "LateStream") -> None:
        self.cuda.events.append(f"{self.name} waits for {other.name}")
        event = self.cuda.Event()
        event.record(other)
        self.enqueue(event.reach)

    def synchronize(self) -> None:
        self.cuda.events.append(f"synchronizes {self.name}")
        if self.cuda.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        while self.queue:
            self.run_next()

    def run_next(self) -> None:
        work, _ = self.queue.popleft()
        # whoever waits may be outside of the mode that it was enqueued in
        with torch.inference_mode():
            work()


class LateEvent:
    def __init__(self, cuda: "LateCuda") -> None:
        self._cuda, self._stream, self._passed = cuda, None, True

    def record(self, stream: Any = None) -> None:
        self._stream, self._passed = stream or self._cuda.current_stream(), False
        self._stream.enqueue(self._pass)

    def _pass(self) -> None:
        self._passed = True

    def reach(self) -> None:
        while not self._passed:
            self._stream.run_next()

    def synchronize(self) -> None:
        self._cuda.events.append("waits for a batch")
        self.reach()


class LateGraph:
    def __init__(self, cuda: "LateCuda") -> None:
        self._cuda, self.nodes, self._key = cuda, [], object()
        cuda.graphs.add(self)
        weakref.finalize(self, cuda.dropped, self._key)

    def replay(self) -> None:
        self._cuda.events.append("replays")
        for node in self.nodes:
            self._cuda.current_stream().enqueue(node, self._key)


class LateCuda:
    """As much of `torch.cuda` as graphs and lanes need; counts captures that are under way at once."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.modes: list[str] = []
        self.capturing = self.most_capturing = 0
        self.meeting = threading.Barrier(2)  # where a capture waits a moment for another
        self.broken = False
        self.dropped_early = 0  # graphs that were still to run
        self.streams: list[LateStream] = []
        self.graphs: weakref.WeakSet[LateGraph] = weakref.WeakSet()
        self.made_on: dict[int, str] = {}  # the stream that was current, by address of what was allocated on the device
        self.made_for: dict[int, Any] = {}  # the device that was asked for, None for that of another tensor
        self._default = LateStream(self, "the caller's stream")
        self._memory: dict[int, Tensor] = {}
        self._pinned: dict[int, Tensor] = {}
        self._here = threading.local()

    def CUDAGraph(self) -> LateGraph:
        return LateGraph(self)

    def Event(self) -> LateEvent:
        return LateEvent(self)

    def Stream(self, priority: int = 0) -> LateStream:
        assert (priority < 0) == (len(self.streams) % 3 == 0)  # captures have a pool of their own
        self.streams.append(LateStream(self, ("the graphs' stream", "up", "down")[len(self.streams) % 3]))
        return self.streams[-1]

    def graph_pool_handle(self) -> None:
        return None

    def current_stream(self, device: torch.device = DEVICE) -> LateStream:
        assert device == DEVICE
        return getattr(self._here, "stream", self._default)

    @contextmanager
    def stream(self, stream: LateStream) -> Iterator[None]:
        before, self._here.stream = self.current_stream(), stream
        yield
        self._here.stream = before

    @contextmanager
    def graph(self, graph: LateGraph, pool: Any, stream: LateStream, capture_error_mode: str) -> Iterator[None]:
        self.modes.append(capture_error_mode)
        self.capturing += 1
        self.most_capturing = max(self.most_capturing, self.capturing)
        self.events.append("captures")
        with suppress(threading.BrokenBarrierError):
            self.meeting.wait(0.3)
        self._here.nodes = graph.nodes
        yield
        self._here.nodes = None
        self.capturing -= 1

    def launch(self, kernel: Work) -> None:
        """What a function of images does: into the graph that is being captured, else onto the current stream."""
        nodes = getattr(self._here, "nodes", None)
        self.events.append("computes")
        if nodes is None:
            self.current_stream().enqueue(kernel)
        else:
            nodes.append(kernel)

    def empty_like(self, x: Tensor, device: Any = None, pin_memory: bool = False) -> Tensor:
        """Filled, so that memory nobody wrote to shows."""
        made = torch.empty_like(x).fill_(77)
        if pin_memory:
            self._pinned[address(made)] = made
        elif (device is not None and device != "cpu") or (device is None and address(x) in self._memory):
            self._memory[address(made)] = made
            self.made_for[address(made)] = device
            self.made_on[address(made)] = self.current_stream().name
        return made

    def copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """`Tensor.copy_`: at once between tensors of the host, else on the current stream."""
        host = [x for x in (target, source) if address(x) not in self._memory]
        if len(host) == 2:
            return _copy(target, source)
        if not host or (non_blocking and address(host[0]) in self._pinned):
            self.current_stream().enqueue(lambda: _copy(target, source))
        else:
            assert host[0] is source, "a copy to the host that waits is nowhere wanted"
            kept = source.clone()
            self.current_stream().enqueue(lambda: _copy(target, kept))
        return target

    @property
    def idle(self) -> bool:
        return not any(stream.queue for stream in self.streams)

    def dropped(self, key: object) -> None:
        self.dropped_early += any(owner is key for stream in self.streams for _, owner in stream.queue)


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@pytest.fixture(name="cuda")
def cuda_fixture(monkeypatch: pytest.MonkeyPatch) -> LateCuda:
    late = LateCuda()
    stand_in = SimpleNamespace(cuda=late, empty_like=late.empty_like, zeros_like=torch.zeros_like)
    monkeypatch.setattr(cuda_graph, "torch", stand_in)
    monkeypatch.setattr(Tensor, "copy_", lambda *given, **named: late.copy(*given, **named))
    return late
