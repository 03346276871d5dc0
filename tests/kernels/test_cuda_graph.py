"""CUDA graphs without a GPU: what is asked of a stand-in for CUDA, and in which order."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from segmenter_engines.sessions import cuda_graph


class FakeStream:
    def __init__(self, events: list[str]) -> None:
        self._events = events

    def wait_stream(self, other: str) -> None:
        self._events.append(f"waits for {other}")

    def synchronize(self) -> None:
        self._events.append("synchronizes")


class Cuda:
    """As much of `torch.cuda` as capturing needs; counts captures that are under way at once."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.modes: list[str] = []
        self.capturing = self.most_capturing = 0
        self.meeting = threading.Barrier(2)  # where a capture waits a moment for another

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.events.append("replays"))

    def Stream(self) -> FakeStream:
        return FakeStream(self.events)

    def graph_pool_handle(self) -> None:
        return None

    def current_stream(self) -> str:
        return "the current stream"

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        yield

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: FakeStream, capture_error_mode: str = "global") -> Iterator[None]:
        self.modes.append(capture_error_mode)
        self.capturing += 1
        self.most_capturing = max(self.most_capturing, self.capturing)
        self.events.append("captures")
        with suppress(threading.BrokenBarrierError):
            self.meeting.wait(0.3)
        yield
        self.capturing -= 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()

    def empty_like(x: Tensor, device: str = "cpu") -> Tensor:
        return torch.empty_like(x)

    monkeypatch.setattr(cuda_graph, "torch", SimpleNamespace(cuda=fake, empty_like=empty_like))
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    return fake


def test_warm_ups_wait_for_what_the_caller_has_begun(cuda: Cuda) -> None:
    def double(x: Tensor) -> tuple[Tensor, ...]:
        cuda.events.append("computes")
        return (2 * x,)

    (answer,) = cuda_graph.Graphs(double)(torch.ones(3))
    assert cuda.events == [
        *("waits for the current stream", "computes", "computes", "synchronizes"),
        *("captures", "computes", "replays", "synchronizes"),
    ]
    assert answer.tolist() == [2, 2, 2]


def test_one_thread_captures_at_a_time_and_others_may_allocate(cuda: Cuda) -> None:
    graphs = [cuda_graph.Graphs(lambda x: (x,)) for _ in range(2)]
    threads = [threading.Thread(target=each, args=(torch.ones(3),)) for each in graphs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cuda.modes == ["thread_local"] * 2
    assert cuda.most_capturing == 1
