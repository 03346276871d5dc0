"""CUDA graphs and lanes through them without a GPU, on streams that do nothing before they must."""

import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segmenter_engines.sessions import cuda_graph
from segmenter_engines.sessions.cuda_graph import Graphs
from tests.kernels.late_cuda import LateCuda, address, cuda_fixture  # noqa: F401 - a fixture


def doubling(cuda: LateCuda) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def double(x: Tensor) -> tuple[Tensor, ...]:
        y = cuda.empty_like(x)
        cuda.launch(lambda: torch.mul(x, 2, out=y))
        return (y,)

    return double


def images(count: int, length: int = 3) -> list[Tensor]:
    return [torch.arange(length) + 10 * turn for turn in range(count)]


def test_warm_ups_wait_for_what_the_caller_has_begun(cuda: LateCuda) -> None:
    (answer,) = Graphs(doubling(cuda))(torch.ones(3))
    assert cuda.events == [
        *(
            "the graphs' stream waits for the caller's stream",
            "computes",
            "computes",
            "synchronizes the graphs' stream",
        ),
        *("captures", "computes", "replays", "synchronizes the graphs' stream"),
    ]
    assert answer.tolist() == [2, 2, 2]


def test_one_thread_captures_at_a_time_and_others_may_allocate(cuda: LateCuda) -> None:
    graphs = [Graphs(doubling(cuda)) for _ in range(2)]
    threads = [threading.Thread(target=each, args=(torch.ones(3),)) for each in graphs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cuda.modes == ["thread_local"] * 2
    assert cuda.most_capturing == 1


@pytest.mark.parametrize("piece", [1, 2, 3, 1 << 20])
def test_images_go_up_in_pieces(cuda: LateCuda, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(cuda_graph, "PIECE", piece)
    graphs = Graphs(doubling(cuda))
    answers = [graphs(x.view(5, 1))[0] for x in images(3, 5)]
    # each is the caller's own
    assert [answer.flatten().tolist() for answer in answers] == [(2 * x).tolist() for x in images(3, 5)]


def test_lanes_overlap_and_keep_apart(cuda: LateCuda) -> None:
    graphs, given = Graphs(doubling(cuda)), images(7)
    lanes, answers = graphs.lanes(), []
    for turn, x in enumerate(given):
        if turn >= 2:
            answers += lanes[turn % 2].collect()
        lanes[turn % 2].submit(x.clone())
        if turn == 3:  # a call between, through the same graph
            assert graphs(torch.full((3,), turn))[0].tolist() == [2 * turn] * 3
    for turn in (7, 8):
        answers += lanes[turn % 2].collect()
    assert [answer.tolist() for answer in answers] == [(2 * x).tolist() for x in given]


def test_a_lane_waits_for_no_more_than_its_own_batch(cuda: LateCuda) -> None:
    graphs = Graphs(doubling(cuda))
    one, other = graphs.lanes()
    one.submit(torch.ones(3))
    cuda.events.clear()
    other.submit(torch.ones(3))
    one.collect()
    assert cuda.events == [
        *("the graphs' stream waits for up", "replays", "down waits for the graphs' stream", "waits for a batch")
    ]
    assert not cuda.idle
    other.collect()


def test_shapes_that_come_and_go_while_batches_are_under_way(cuda: LateCuda) -> None:
    graphs = Graphs(doubling(cuda), capacity=1)
    lanes = graphs.lanes()
    given = [torch.arange(length) for length in (3, 4, 4, 4, 3, 5)]
    answers = []
    for turn, x in enumerate(given):
        if turn >= 2:
            answers += lanes[turn % 2].collect()
        lanes[turn % 2].submit(x)
    for lane in lanes:
        answers += lane.collect()
    assert [answer.tolist() for answer in answers] == [(2 * x).tolist() for x in given]
    assert cuda.events.count("captures") == 4
    assert not cuda.dropped_early


def test_memory_of_a_lane_belongs_to_the_stream_that_writes_to_it(cuda: LateCuda) -> None:
    (lane,) = Graphs(doubling(cuda)).lanes(1)
    lane.submit(torch.ones(3))
    assert lane._memory is not None
    assert cuda.made_on[address(lane._memory.images)] == "up"
    assert [cuda.made_on[address(x)] for x in lane._memory.outputs] == ["the graphs' stream"]


def test_images_get_memory_of_the_streams_device_whichever_is_current(cuda: LateCuda) -> None:
    graphs = Graphs(doubling(cuda))
    assert cuda.made_for[address(graphs.of(torch.ones(3)).input)] == graphs.stream.device


def test_a_call_that_fails_leaves_nothing_under_way(cuda: LateCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(doubling(cuda))
    graphs(torch.ones(3))

    def full(self: cuda_graph.Pinned) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(cuda_graph.Pinned, "download", full)
        with pytest.raises(MemoryError):
            graphs(torch.ones(3))
    assert cuda.idle
    assert graphs(torch.full((3,), 4.0))[0].tolist() == [8, 8, 8]


@pytest.mark.parametrize("broken", [False, True])
def test_closing_waits_for_what_is_under_way_and_gives_memory_back(cuda: LateCuda, broken: bool) -> None:
    graphs = Graphs(doubling(cuda))
    lanes = graphs.lanes()
    for lane in lanes:
        lane.submit(torch.ones(3))
    memory = [weakref.ref(lane._memory) for lane in lanes if lane._memory is not None]
    assert len(memory) == len(lanes)
    assert len(cuda.graphs) == 1
    cuda.broken = broken
    graphs.close()
    if broken:
        # what a failed device never does here holds the memory too
        for stream in cuda.streams:
            stream.queue.clear()
    assert [kept() for kept in memory] == [None, None]
    assert not cuda.graphs
    for lane in lanes:
        lane.free()
    if not broken:
        assert cuda.idle
        assert not cuda.dropped_early


def test_a_lane_that_was_freed_leaves_the_graphs_usable(cuda: LateCuda) -> None:
    graphs = Graphs(doubling(cuda))
    one, other = graphs.lanes()
    one.submit(torch.ones(3))
    other.submit(torch.ones(3))
    one.free()
    other.free()
    assert cuda.idle
    one.submit(torch.full((3,), 4.0))
    assert one.collect()[0].tolist() == [8, 8, 8]
    assert graphs(torch.ones(3))[0].tolist() == [2, 2, 2]
