"""Plans in a session, on a stand-in for TensorRT that computes in a stand-in for CUDA."""

import gc
import json
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

import segmenter_trt
from segmenter.errors import EngineError, Unavailable
from segmenter.files import sha256
from segmenter_engines import open_session
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions import plan as plans
from segmenter_engines.sessions import tensorrt as module
from segmenter_engines.sessions.tensorrt import TensorRTSession
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import (
    VERSIONS,
    Engine,
    FakeTensorRT,
    confidence_of,
    labels_of,
    masks_of,
    normalized,
    write_plan,
)
from tests.small_engines import pictures

H, W = 40, 56


class Machine:
    """One with a GPU and both runtimes, all of them fake."""

    def __init__(self, monkeypatch):
        self.cuda = FakeCuda()
        self.trt = {engine: FakeTensorRT(self.cuda, engine) for engine in VERSIONS}
        monkeypatch.setattr(module, "require_driver", lambda engine: None)
        monkeypatch.setattr(module, "open_device", lambda engine, libraries: self.cuda)
        monkeypatch.setattr(plans, "tensorrt", self.trt.__getitem__)
        monkeypatch.setattr(plans, "builder_log", lambda engine: self.trt[engine].log)


@pytest.fixture
def machine(monkeypatch):
    """Afterwards nothing may be left, and nothing may have been touched that was not there."""
    machine = Machine(monkeypatch)
    yield machine
    if machine.cuda.live:
        gc.collect()
    assert machine.cuda.faults == []
    assert machine.cuda.live == {}
    assert plans._OPEN == {}
    assert all(trt.alive == 0 for trt in machine.trt.values())


@pytest.fixture
def plan(tmp_path):
    return write_plan(tmp_path / "model.fp16.plan")


def shots(count, height=H, width=W, seed=0):
    return pictures(count, height, width, seed)


@pytest.mark.parametrize("engine", sorted(VERSIONS))
@pytest.mark.parametrize("takes", ["normalized", "pixels"])
@pytest.mark.parametrize("outputs", [("labels",), ("labels", "masks"), ("masks",)])
def test_labels_are_the_plans_call_after_call(machine, tmp_path, engine, takes, outputs):
    path = write_plan(tmp_path / "m.plan", engine, input=takes, outputs=outputs)
    images = shots(3)
    with open_session(path, threads=1) as session:
        assert session.name == f"{engine}-fp16"
        for seed in range(4):
            images = shots(3, seed=seed)
            labels = session(images)
            assert labels.dtype == np.uint8
            assert np.array_equal(labels, labels_of(images, 5))
        assert len(np.unique(labels)) > 1
        assert np.array_equal(session(images[1]), labels_of(images[1:2], 5)[0])
        facts = session.describe()
    assert facts["graphs"] == [(3, H, W, 3) if takes == "pixels" else (3, 3, H, W)]
    assert facts["no_graphs"] is None
    assert facts["labels_by"] == ("the plan" if "labels" in outputs else "segmenter_trt.upsample_argmax")
    assert facts["numbers_checked"] is ("masks" in outputs)
    assert facts["device"] == "Fake GPU"
    assert facts["runtime"].endswith(VERSIONS[engine])
    assert facts["profile"]["batch"] == (1, 1, 4)
    assert facts["memory"]["session"] > 512
    json.dumps(facts)


def test_masks_logits_and_confidence(machine, tmp_path):
    path = write_plan(tmp_path / "m.plan", outputs=("labels", "masks", "confidence"))
    images = shots(2)
    masks = masks_of(normalized(images), 5)
    with open_session(path, threads=1) as session:
        assert np.array_equal(session.masks(normalized(images)), masks)
        assert session.logits(images).shape == (2, 5, H, W)
        confidence = session.confidence(images)
        assert confidence.dtype == np.float32
        assert np.array_equal(confidence, confidence_of(masks, (H, W)))
        assert session.confidence(images[0]).shape == (H, W)
    with open_session(write_plan(tmp_path / "n.plan", input="pixels", outputs=("masks",)), threads=1) as session:
        assert np.array_equal(session.masks(images), masks)
        expected = session.logits(images).max(1)
        assert session.confidence(images).shape == expected.shape  # made of the masks
    with (
        open_session(write_plan(tmp_path / "o.plan", input="pixels"), threads=1) as session,
        pytest.raises(EngineError, match="gives labels only; build it with masks among its --outputs"),
    ):
        session.confidence(images)


def test_more_classes_than_a_byte_counts(machine, tmp_path):
    images = shots(1)
    with open_session(write_plan(tmp_path / "m.plan", classes=300), threads=1) as session:
        labels = session(images)
        assert labels.dtype == np.int16
        assert np.array_equal(labels, labels_of(images, 300))
        assert np.array_equal(next(session.stream(images)), labels[0])


def test_one_graph_a_shape_and_the_least_used_goes(machine, tmp_path, monkeypatch):
    monkeypatch.setattr("segmenter_engines.sessions.runner.CAPACITY", 3)
    path = write_plan(tmp_path / "m.plan", height=(16, 48, 96), width=(16, 48, 96))
    with open_session(path, threads=1) as session:
        for _ in range(3):  # the first computes, the second captures, the third launches
            assert np.array_equal(session(shots(2)), labels_of(shots(2), 5))
        assert (machine.cuda.captures, machine.cuda.launches) == (1, 2)
        sizes = [(32, 48), (48, 64), (64, 32)]
        for height, width in (*sizes, *sizes, *sizes):
            images = shots(1, height, width)
            assert np.array_equal(session(images), labels_of(images, 5))
        assert [shape[2:] for shape in session.describe()["graphs"]] == sizes
        assert machine.cuda.captures == 4
        held = len(machine.cuda.live)
        for height in (16, 24, 72, 80, 88):
            session(shots(1, height, 32))
        assert session.describe()["graphs"] == []
        assert len(machine.cuda.live) == held - 6  # an input and an output of three graphs


def test_where_graphs_are_not_wanted_there_is_one_context(machine, plan):
    with TensorRTSession(plan, 1, graphs=False) as session:
        for seed in range(3):
            assert np.array_equal(session(shots(1, seed=seed)), labels_of(shots(1, seed=seed), 5))
        assert session.describe()["no_graphs"] == "opened without them"
    trt = machine.trt["tensorrt-rtx"]
    (config,) = trt.contexts
    assert config.dynamic_shapes_kernel_specialization_strategy == "lazy"


def test_contexts_of_a_plan_share_what_was_compiled(machine, plan):
    with open_session(plan, threads=1) as session:
        for _ in range(2):
            session(shots(1))
    own, graph = machine.trt["tensorrt-rtx"].contexts
    assert own.cache is graph.cache is not None
    assert own.dynamic_shapes_kernel_specialization_strategy == "eager"


@pytest.mark.parametrize("how", ["cuda", "tensorrt"])
def test_a_capture_that_fails_leaves_a_session_that_works(machine, plan, how):
    if how == "cuda":
        machine.cuda.capture_fails, reason = True, "STREAM_CAPTURE_UNSUPPORTED: operation not permitted"
    else:
        machine.trt["tensorrt-rtx"].not_capturable, reason = True, "TensorRT-RTX says this plan cannot be captured"
    with open_session(plan, threads=1) as session:
        for seed in range(4):
            assert np.array_equal(session(shots(2, seed=seed)), labels_of(shots(2, seed=seed), 5))
        facts = session.describe()
    assert facts["graphs"] == []
    assert reason in facts["no_graphs"]
    assert machine.cuda.launches == 0
    assert len(machine.trt["tensorrt-rtx"].contexts) == 2  # it tried once


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_failing_enqueue_is_named_and_over_with_the_next_call(machine, plan, before):
    trt = machine.trt["tensorrt-rtx"]
    with open_session(plan, threads=1) as session:
        for seed in range(before):
            session(shots(1, seed=seed))
        trt.enqueue_fails = True
        if before == 3:
            # a graph asks TensorRT no more: another size has to
            with pytest.raises(EngineError, match="TensorRT-RTX: execution failed: enqueueV3: no room"):
                session(shots(2))
        else:
            with pytest.raises(EngineError, match="TensorRT-RTX: execution failed: enqueueV3: no room"):
                session(shots(1))
        trt.enqueue_fails = False
        # more of them, so that buffers are made anew while the failed ones may be in use
        assert np.array_equal(session(shots(4, seed=9)), labels_of(shots(4, seed=9), 5))


@pytest.mark.parametrize("outputs", [("labels", "masks"), ("masks",), ("labels", "confidence")])
def test_scores_that_are_no_numbers_are_an_error(machine, tmp_path, outputs):
    machine.trt["tensorrt-rtx"].nan = True
    with open_session(write_plan(tmp_path / "m.plan", outputs=outputs), threads=1) as session:
        ask = session.confidence if "confidence" in outputs else session
        with pytest.raises(EngineError, match=r"tensorrt-rtx-fp16, small: .*(no numbers|[nN]a[nN])"):
            ask(shots(1))
        if "confidence" not in outputs:
            with pytest.raises(EngineError, match=r"no numbers|[nN]a[nN]"):
                list(session.stream(shots(2)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, H, W, 3), np.float32), "images float32"),
        (np.zeros((1, H, W, 4), np.uint8), "wanted uint8 RGB"),
        (np.zeros((1, H, W + 1, 3), np.uint8), f"image {H}x{W + 1}: this engine takes {H}x{W}"),
        (np.zeros((5, H, W, 3), np.uint8), "batch of 5: this engine takes at most 4"),
        (np.zeros((1, H, W, 3), np.uint8), "batch of 1: this engine takes at least 2"),
    ],
)
def test_images_a_plan_does_not_take_are_named(machine, tmp_path, images, message):
    with (
        open_session(write_plan(tmp_path / "m.plan", batch=(2, 2, 4)), threads=1) as session,
        pytest.raises(EngineError, match=message),
    ):
        session(images)


def test_a_size_outside_the_range_is_named(machine, tmp_path):
    path = write_plan(tmp_path / "m.plan", height=(32, 48, 64), width=(32, 48, 96))
    with open_session(path, threads=1) as session:
        with pytest.raises(EngineError, match="image 72x48: this engine takes 32 to 64 by 32 to 96; resize it"):
            session(shots(1, 72, 48))
        # where the plan and its manifest are not of one mind, the plan says so
        session.spec = replace(session.spec, height=(32, 48, 80))
        with pytest.raises(EngineError, match=r"images \(1, 3, 72, 48\): outside this plan's profile"):
            session(shots(1, 72, 48))


def test_sessions_share_a_plan_and_the_last_closes_it(machine, plan):
    trt = machine.trt["tensorrt-rtx"]
    first, second = (open_session(plan, threads=1) for _ in range(2))
    assert trt.deserialized == 1
    assert first.describe()["plan_shared_by"] == 2
    first.close()
    first.close()
    assert trt.alive == 1
    assert np.array_equal(second(shots(1)), labels_of(shots(1), 5))
    second.close()
    assert trt.alive == 0
    with open_session(plan, threads=1):
        assert trt.deserialized == 2


def test_two_sessions_of_a_plan_in_two_threads(machine, tmp_path):
    path = write_plan(tmp_path / "m.plan", height=(32, 48, 64), width=(32, 48, 64))
    wrong, together = [], threading.Barrier(2)

    def work(seed):
        try:
            together.wait(10)
            with open_session(path, threads=1) as session:
                for turn in range(12):
                    images = shots(1 + turn % 3, 32 + 8 * (turn % 2), 48, seed=100 * seed + turn)
                    if not np.array_equal(session(images), labels_of(images, 5)):
                        wrong.append((seed, turn))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert machine.trt["tensorrt-rtx"].deserialized <= 2  # 1 where they overlap


@pytest.mark.parametrize("engine", sorted(VERSIONS))
def test_plugins_are_loaded_first_and_once(machine, tmp_path, monkeypatch, engine):
    trt, library = machine.trt[engine], tmp_path / "libplugins.so"
    library.write_bytes(b"plugins")
    trusted = {"plugin_library": {"name": library.name, "sha256": sha256(library)}}
    path = write_plan(tmp_path / "m.plan", engine, plugins=("SegmenterAttention", "SegmenterLinear"), details=trusted)
    with pytest.raises(EngineError, match=r"needs the plugin library libplugins\.so"):
        open_session(path, threads=1)
    monkeypatch.setattr(segmenter_trt, "plugin_library", lambda: str(library), raising=False)
    trt.library_brings = ("SegmenterAttention",)
    with pytest.raises(EngineError, match=r"ops SegmenterLinear are needed, which .*libplugins\.so does not bring"):
        open_session(path, threads=1)
    assert trt.deserialized == 0
    trt.creators.append("SegmenterLinear")
    for _ in range(2):
        with open_session(path, threads=1) as session:
            assert np.array_equal(session(shots(1)), labels_of(shots(1), 5))
    assert trt.loaded == [str(library)]
    with TensorRTSession(path, 1, plugins=library):
        pass
    library.write_bytes(b"others")
    with pytest.raises(EngineError, match="SHA-256"):
        open_session(path, threads=1)


def test_what_cannot_be_opened_is_named_and_leaves_nothing(machine, tmp_path, monkeypatch, plan):
    trt = machine.trt["tensorrt-rtx"]
    trt.refuses_plan = True
    with pytest.raises(EngineError, match=r"model\.fp16\.plan: TensorRT-RTX cannot load it: magic tag does not match"):
        open_session(plan, threads=1)
    trt.refuses_plan = False
    monkeypatch.setattr(Engine, "create_execution_context", lambda engine, how: None)
    with pytest.raises(EngineError, match="TensorRT-RTX makes no context: no reason given"):
        open_session(plan, threads=1)
    monkeypatch.undo()
    with pytest.raises(EngineError, match="precision 'int8': tensorrt-rtx computes in what its artifact holds, fp16"):
        open_session(plan, threads=1, precision="int8")


def test_what_is_not_as_the_manifest_says_is_named(machine, tmp_path, plan):
    machine.cuda.capability = (7, 5)
    with pytest.raises(Unavailable, match="engine tensorrt-rtx: Fake GPU is older than Ampere"):
        open_session(plan, threads=1)
    machine.cuda.capability = (8, 6)
    path = write_plan(tmp_path / "m.plan", compute_capabilities=("9.0",))
    with pytest.raises(EngineError, match=r"built for GPUs of compute capability 9\.0, this one has 8\.6"):
        open_session(path, threads=1)
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(EngineError, match="is not the file its manifest vouches for"):
        open_session(plan, threads=1)
    path = write_plan(tmp_path / "m.plan", outputs=("logits",))
    with pytest.raises(EngineError, match=r"m\.plan: gives logits; a session needs labels or masks of a plan"):
        open_session(path, threads=1)
    path = write_plan(tmp_path / "m.plan")
    replace(read_manifest(path), outputs=("labels", "masks")).write(path)
    with pytest.raises(
        EngineError, match=r"says normalized in, labels, masks out, the plan itself images FLOAT, labels"
    ):
        open_session(path, threads=1)
    assert machine.trt["tensorrt-rtx"].deserialized == 1


def test_a_closed_session_says_so(machine, plan):
    session = open_session(plan, threads=1)
    session.close()
    for call in (
        lambda: session(shots(1)),
        lambda: next(session.stream(shots(1))),
        lambda: session.run_device(shots(1)),
        session.describe,
    ):
        with pytest.raises(EngineError, match="tensorrt-rtx-fp16, small: this session is closed; open it again"):
            call()
    session.close()


def test_a_session_nobody_holds_gives_everything_back(machine, plan):
    session = open_session(plan, threads=1)
    for _ in range(3):
        session(shots(1))
    assert machine.cuda.live
    del session
    gc.collect()
    assert machine.cuda.live == {}
    assert plans._OPEN == {}


def test_at_interpreter_exit_everything_is_given_back(tmp_path):
    script = f"""
import weakref
from pathlib import Path
import pytest
from segmenter_engines.sessions import open_engine
from tests.fake_tensorrt import write_plan
from tests.test_tensorrt_session import Machine, shots

machine = Machine(pytest.MonkeyPatch())
# finalizers run the last made first
weakref.finalize(machine, lambda cuda: print("left", len(cuda.live), cuda.faults), machine.cuda)
session = open_engine(write_plan(Path({str(tmp_path)!r}) / "m.plan"), threads=1)
for _ in range(3):
    session(shots(1))
stream = session.stream(shots(3))
next(stream)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert run.stderr == ""
    assert run.stdout == "left 0 []\n"
