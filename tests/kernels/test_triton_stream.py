"""Streams of the `triton` engine through its graphs' lanes, on a stand-in for CUDA whose streams run late."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segmenter.checkpoint import save_model
from segmenter.errors import EngineError
from segmenter_engines import Session, open_session
from segmenter_engines.sessions import triton as module
from segmenter_engines.sessions.cuda_graph import Graphs
from segmenter_kernels.checks import INTERPRETED
from tests.kernels.late_cuda import DEVICE, LateCuda, cuda_fixture  # noqa: F401 - a fixture
from tests.networks import small_network

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the stand-in for a GPU would be beside one")
BROKEN = 255  # a pixel whose scores are no numbers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(small_network(), folder)
    return folder


@pytest.fixture
def session(checkpoint: Path, cuda: LateCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """One whose labels are the first channel of its images, made in late graphs."""

    def forward(images: Tensor) -> tuple[Tensor, ...]:
        labels, finite = (cuda.empty_like(x, device=DEVICE) for x in (images[..., 0], torch.tensor(False)))

        def kernel() -> None:
            labels[...] = images[..., 0]
            finite[...] = (images != BROKEN).all()

        cuda.launch(kernel)
        return labels, finite

    monkeypatch.setattr(module, "_graphs", lambda _: Graphs(forward))
    with open_session(checkpoint, "triton", threads=1) as session:
        yield session


def picture(pixel: int, *shape: int) -> np.ndarray:
    return np.full((*(shape or (4, 5)), 3), pixel, np.uint8)


def test_labels_come_in_order_whatever_the_shapes(session: Session) -> None:
    shapes = [(4, 5), (2, 4, 5), (4, 5), (6, 3), (6, 3), (1, 6, 3), (4, 5)]
    images = [picture(pixel, *shape) for pixel, shape in enumerate(shapes)]
    images[3] = images[3][::-1]  # no rows in order
    streamed = list(session.stream(iter(images)))
    assert len(streamed) == len(images)
    for labels, image in zip(streamed, images, strict=True):
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, image[..., 0])
    assert list(session.stream([])) == []


def test_few_threads_copy_and_the_callers_are_as_many_as_before(
    session: Session, cuda: LateCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, copied_by = torch.get_num_threads(), []
    copy = cuda.copy

    def counted(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        copied_by.append(torch.get_num_threads())
        return copy(target, source, non_blocking)

    monkeypatch.setattr(cuda, "copy", counted)
    torch.set_num_threads(7)
    try:
        for threads in (1, 99):
            session.threads = threads
            copied_by.clear()
            session(picture(1))
            list(session.stream([picture(2), picture(3)]))
            assert copied_by
            assert set(copied_by) == {min(threads, module.COPIERS)}
            assert torch.get_num_threads() == 7
    finally:
        torch.set_num_threads(before)


def test_sessions_in_several_threads_leave_as_many_threads_as_before(session: Session) -> None:
    before, seen = torch.get_num_threads(), {}
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def copy(name: str, mine: threading.Event, others: threading.Event) -> None:
        with session._copying():  # type: ignore[attr-defined]
            mine.set()
            assert others.wait(10)
            seen[name] = torch.get_num_threads()
        seen[f"{name}, after"] = torch.get_num_threads()

    def first() -> None:
        copy("first", first_in, second_in)
        first_out.set()

    def second() -> None:
        assert first_in.wait(10)
        copy("second", second_in, first_out)

    def later() -> None:
        seen["a new thread"] = torch.get_num_threads()

    session.threads = 99
    torch.set_num_threads(7)
    try:
        for together in ((first, second), (later,)):
            threads = [threading.Thread(target=each) for each in together]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        torch.set_num_threads(before)
    few = dict.fromkeys(("first", "second"), module.COPIERS)
    assert seen == few | dict.fromkeys(("first, after", "second, after", "a new thread"), 7)


def test_whatever_thread_calls_its_own_device_is_current(
    session: Session, cuda: LateCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[torch.device] = []
    current_at_copies = set()
    copy = cuda.copy

    @contextmanager
    def device(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield
        entered.pop()

    def seen(*given: Any, **named: Any) -> Tensor:
        current_at_copies.add(tuple(entered))
        return copy(*given, **named)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(cuda, "copy", seen)
    monkeypatch.setattr(session, "_device", DEVICE)
    session(picture(1))
    list(session.stream([picture(2), picture(3)]))
    assert current_at_copies == {(DEVICE,)}
    assert not entered


def test_a_stream_computes_while_the_caller_prepares(session: Session, cuda: LateCuda) -> None:
    asked = []

    def source() -> Iterator[np.ndarray]:
        for pixel in range(5):
            asked.append(pixel)
            yield picture(pixel)

    labels = session.stream(source())
    next(labels)
    assert asked == [0, 1, 2]  # one is given, one computes, one waits
    assert len(list(labels)) == 4


def test_calls_between_and_two_streams_at_once(session: Session) -> None:
    one, other = (session.stream([picture(base + turn) for turn in range(4)]) for base in (10, 20))
    for turn in range(4):
        assert (next(one) == 10 + turn).all()
        assert (session(picture(turn, 2, 4, 5)) == turn).all()
        assert (session(picture(turn)) == turn).all()
        assert (next(other) == 20 + turn).all()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("broken", [False, True])
def test_an_error_comes_after_the_labels_before_it(session: Session, cuda: LateCuda, count: int, broken: bool) -> None:
    """Of the images, or of scores that are no numbers."""

    def source() -> Iterator[np.ndarray]:
        yield from (picture(pixel) for pixel in range(count))
        if not broken:
            raise OSError("no such picture")
        yield picture(BROKEN)
        yield picture(0)

    got: list[np.ndarray] = []
    with pytest.raises(EngineError if broken else OSError, match=r"scores that are no numbers|no such picture"):
        got.extend(session.stream(source()))
    assert [labels[0, 0] for labels in got] == list(range(count))
    assert cuda.idle
    assert (session(picture(7)) == 7).all()


def test_an_image_it_does_not_take_and_a_device_that_fails_end_a_stream(
    session: Session, cuda: LateCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[np.ndarray] = []
    with pytest.raises(EngineError, match="wanted uint8 RGB"):
        got.extend(session.stream([picture(0), picture(1), picture(2)[..., :2], picture(3)]))
    assert len(got) == 2

    def source() -> Iterator[np.ndarray]:
        yield picture(0)
        yield picture(1)
        monkeypatch.setattr(cuda, "CUDAGraph", refuses)
        yield picture(2, 3, 3)
        raise AssertionError("asked for more")

    def refuses() -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(EngineError, match="triton-fp16, small: CUDA out of memory"):
        got.extend(session.stream(source()))
    assert len(got) == 4
    assert cuda.idle


def test_a_stream_left_in_the_middle_waits_and_leaves_the_session_usable(session: Session, cuda: LateCuda) -> None:
    left = session.stream([picture(pixel) for pixel in range(4)])
    next(left)
    assert not cuda.idle
    left.close()  # type: ignore[attr-defined]
    assert cuda.idle
    assert [labels[0, 0] for labels in session.stream([picture(8), picture(9)])] == [8, 9]


def test_a_session_closed_in_the_middle_of_a_stream(session: Session, cuda: LateCuda) -> None:
    labels = session.stream([picture(pixel) for pixel in range(4)])
    next(labels)
    assert not cuda.idle
    session.close()
    assert cuda.idle
    assert not cuda.dropped_early
    with pytest.raises(EngineError, match="this session is closed"):
        next(labels)
    with pytest.raises(StopIteration):
        next(labels)
