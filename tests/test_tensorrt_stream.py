"""Images streamed from the host through a plan."""

import gc

import numpy as np
import pytest

from segmenter.errors import EngineError
from segmenter_engines import open_session
from segmenter_engines.sessions.tensorrt import TensorRTSession
from tests.fake_machine import H, W, machine_fixture, plan_fixture, shots  # noqa: F401 - fixtures
from tests.fake_tensorrt import labels_of, write_plan


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("takes", ["normalized", "pixels"])
def test_labels_of_a_stream_come_in_order(machine, tmp_path, graphs, takes):
    path = write_plan(tmp_path / "m.plan", input=takes, outputs=("labels", "masks"))
    batches = [shots(1 + seed % 3, seed=seed) for seed in range(7)]
    with TensorRTSession(path, 1, graphs=graphs) as session:
        for batch, labels in zip(batches, session.stream(iter(batches)), strict=True):
            assert np.array_equal(labels, labels_of(batch, 5))
        singles = list(session.stream(shots(5)))
        assert [labels.shape for labels in singles] == [(H, W)] * 5
        assert np.array_equal(np.stack(singles), labels_of(shots(5), 5))
        assert list(session.stream([])) == []
        assert np.array_equal(session(batches[0]), labels_of(batches[0], 5))


def test_graphs_that_go_while_they_are_under_way(machine, tmp_path, monkeypatch):
    monkeypatch.setattr("segmenter_engines.sessions.runner.CAPACITY", 1)
    path = write_plan(tmp_path / "m.plan", height=(32, 48, 64), width=(32, 48, 64))
    batches = [shots(1, 32 + 16 * (turn // 3 % 2), 48, seed=turn) for turn in range(12)]
    with open_session(path, threads=1) as session:
        for batch, labels in zip(batches, session.stream(batches), strict=True):
            assert np.array_equal(labels, labels_of(batch, 5))
    assert machine.cuda.captures == 4


def test_a_stream_computes_while_the_caller_prepares(machine, plan):
    asked = []

    def source():
        for seed in range(5):
            asked.append(seed)
            yield shots(1, seed=seed)

    with open_session(plan, threads=1) as session:
        labels = session.stream(source())
        next(labels)
        assert asked == [0, 1, 2]  # one is given, one computes, one waits
        assert len(list(labels)) == 4


def test_calls_between_and_two_streams_at_once(machine, plan):
    with open_session(plan, threads=1) as session:
        one, other = (session.stream([shots(1, seed=seed + turn) for turn in range(4)]) for seed in (10, 20))
        for turn in range(4):
            assert np.array_equal(next(one), labels_of(shots(1, seed=10 + turn), 5))
            assert np.array_equal(session(shots(2, seed=turn)), labels_of(shots(2, seed=turn), 5))
            assert np.array_equal(next(other), labels_of(shots(1, seed=20 + turn), 5))


def fails_at(count, error):
    for seed in range(count):
        yield shots(1, seed=seed)
    raise error


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_an_error_of_the_images_comes_after_the_labels_before_it(machine, plan, count):
    with open_session(plan, threads=1) as session:
        got = []
        with pytest.raises(OSError, match="no such picture"):
            got.extend(session.stream(fails_at(count, OSError("no such picture"))))
        assert len(got) == count
        assert np.array_equal(session(shots(1)), labels_of(shots(1), 5))


def test_an_image_that_does_not_fit_ends_a_stream_after_those_that_do(machine, plan):
    got = []
    with open_session(plan, threads=1) as session:
        with pytest.raises(EngineError, match=r"image 40x57: this engine takes 40x56"):
            got.extend(session.stream([shots(1), shots(1, seed=1), np.zeros((H, W + 1, 3), np.uint8), shots(1)]))
        assert len(got) == 2
        assert len(list(session.stream([shots(1)]))) == 1


def test_an_engine_that_fails_in_a_stream_ends_it(machine, plan):
    trt = machine.trt["tensorrt-rtx"]

    def source():
        yield shots(1)
        yield shots(1, seed=1)
        trt.enqueue_fails = True
        yield shots(2)
        raise AssertionError("asked for more")

    got = []
    with open_session(plan, threads=1) as session:
        with pytest.raises(EngineError, match="execution failed: enqueueV3: no room"):
            got.extend(session.stream(source()))
        assert len(got) == 2
        assert all(np.array_equal(labels, labels_of(shots(1, seed=seed), 5)) for seed, labels in enumerate(got))
        trt.enqueue_fails = False
        assert np.array_equal(session(shots(1)), labels_of(shots(1), 5))


def test_a_stream_left_in_the_middle_gives_its_memory_back(machine, plan):
    with open_session(plan, threads=1) as session:
        list(session.stream([shots(1)] * 3))
        session(shots(1))
        held = len(machine.cuda.live)
        for _ in session.stream([shots(1)] * 4):
            break
        gc.collect()
        assert len(machine.cuda.live) == held


def test_a_session_closed_in_the_middle_of_a_stream(machine, plan):
    session = open_session(plan, threads=1)
    labels = session.stream([shots(1)] * 4)
    next(labels)
    session.close()
    assert machine.cuda.live == {}
    with pytest.raises(EngineError, match="this session is closed"):
        next(labels)
    with pytest.raises(StopIteration):
        next(labels)
