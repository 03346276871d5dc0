"""Tables that launches read, on a stand-in for CUDA: which are kept, and what the allocator is told of them."""

import importlib
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segmenter_kernels import tables

# what makes an op's tables, arguments of it one after the other, and how many it keeps
MAKERS = {
    "resize": ("_filter", lambda turn: (640 + turn, 512), 64),
    "normalize": ("_table", lambda turn: ((turn / 100,) * 3, (0.5,) * 3), 8),
}


class Device:
    """One of a test's own, for what is kept outlives it."""

    type = "cuda"

    def __str__(self) -> str:
        return "cuda:0"


class OnGpu:
    """As much of a tensor as is asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape, self.streams = array.shape, []

    def to(self, device: Device) -> "OnGpu":
        return self

    def record_stream(self, stream: str) -> None:
        self.streams.append(stream)


class Gpu:
    capturing, stream = False, "X"

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def current_stream(self, device: Device) -> str:
        return self.stream


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(tables, "torch", SimpleNamespace(from_numpy=OnGpu, cuda=gpu))
    return gpu


@pytest.fixture(params=MAKERS)
def made(request: pytest.FixtureRequest) -> Any:
    """The tables of turn 0, 1, ... of an op, and how many it keeps."""
    name, arguments, most = MAKERS[request.param]
    maker = getattr(importlib.import_module(f"segmenter_kernels.{request.param}"), name)
    device = Device()
    return SimpleNamespace(op=request.param, of=lambda turn: maker(device, *arguments(turn)), most=most)


def test_those_used_last_are_kept(gpu: Gpu, made: Any) -> None:
    first = [weakref.ref(each) for each in made.of(0)]
    assert all(one is other() for one, other in zip(made.of(0), first, strict=True))
    for turn in range(1, made.most):
        made.of(turn)
    assert all(each() for each in first)
    made.of(made.most)
    assert not any(each() for each in first)


def test_what_a_captured_graph_reads_is_kept_for_good(gpu: Gpu, made: Any) -> None:
    first = [weakref.ref(each) for each in made.of(0)]
    gpu.capturing = True
    made.of(0)
    gpu.capturing = False
    for turn in range(1, 2 * made.most):
        made.of(turn)
    assert all(each() for each in first)
    # and is not made twice
    assert all(one is other() for one, other in zip(made.of(0), first, strict=True))


def test_a_table_to_be_made_while_a_graph_is_captured_is_refused(gpu: Gpu, made: Any) -> None:
    gpu.capturing = True
    message = rf"^{made.op}: a table of .* would be copied to cuda:0 while a CUDA graph is captured; make the call once"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            made.of(0)
    gpu.capturing = False
    made.of(0)


def test_the_allocator_is_told_of_every_stream_that_reads(gpu: Gpu, made: Any) -> None:
    made.of(0)
    gpu.stream = "Y"
    found = made.of(0)
    assert all(each.streams == ["X", "Y"] for each in found)
    # a captured one is never given back, and events of a captured stream would be part of the graph
    gpu.capturing, gpu.stream = True, "Z"
    made.of(0)
    assert all(each.streams == ["X", "Y"] for each in found)
