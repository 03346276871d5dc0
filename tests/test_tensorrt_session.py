"""Plans in a session, on a stand-in for TensorRT that computes in a stand-in for CUDA."""

import json
from dataclasses import replace

import numpy as np
import pytest

from segmenter.errors import EngineError
from segmenter_engines import open_session
from segmenter_engines.sessions.tensorrt import TensorRTSession
from tests.fake_machine import H, W, machine_fixture, plan_fixture, shots  # noqa: F401 - fixtures
from tests.fake_tensorrt import VERSIONS, confidence_of, labels_of, masks_of, normalized, write_plan


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
        machine.cuda.capture_fails, reason = True, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: operation not permitted"
    else:
        machine.trt["tensorrt-rtx"].not_capturable, reason = True, "TensorRT-RTX says this plan cannot be captured"
    with open_session(plan, threads=1) as session:
        for seed in range(4):
            assert np.array_equal(session(shots(2, seed=seed)), labels_of(shots(2, seed=seed), 5))
        facts = session.describe()
    assert facts["graphs"] == []
    assert facts["no_graphs"] == f"images 2x40x56: {reason}"
    assert machine.cuda.launches == 0
    assert len(machine.trt["tensorrt-rtx"].contexts) == 2  # it tried once


def test_a_shape_that_is_not_captured_leaves_others_their_graphs(machine, tmp_path):
    plan = write_plan(tmp_path / "m.plan", input="pixels", height=(32, 40, 64), width=(32, 56, 64))
    with open_session(plan, threads=1) as session:
        machine.cuda.capture_fails = True
        for seed in range(3):
            session(shots(1, seed=seed))
        machine.cuda.capture_fails = False
        for seed in range(3):
            assert np.array_equal(session(shots(2, 32, 48, seed)), labels_of(shots(2, 32, 48, seed), 5))
            assert np.array_equal(session(shots(1, seed=seed)), labels_of(shots(1, seed=seed), 5))
        facts = session.describe()
    assert facts["graphs"] == [(2, 32, 48, 3)]
    assert facts["no_graphs"].startswith("images 1x40x56: ")


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
