"""Verification: what passes, what does not, and engines that are not of the network they lie beside."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from segmenter.checkpoint import save_model
from segmenter.cpu import cpu_flags
from segmenter.datasets import Sample
from segmenter.errors import EngineError
from segmenter.files import sha256
from segmenter_bench.models import open_folder
from segmenter_engines import build as build_command
from segmenter_engines import open_session
from segmenter_engines import verify as verify_command
from segmenter_engines.build import build
from segmenter_engines.export import export
from segmenter_engines.folder import FP16, FP32, INT8, INT8_TENSORRT, manifests
from segmenter_engines.graph_file import write_graph
from segmenter_engines.limits import LIMITS, Limit
from segmenter_engines.manifest import manifest_path, read_manifest
from segmenter_engines.quantize import quantize
from segmenter_engines.sessions.onnxruntime import OnnxRuntimeSession, WholeGraphSession
from segmenter_engines.sessions.openvino import OpenVinoSession
from segmenter_engines.trade import Trade
from segmenter_engines.verdict import Verdict
from segmenter_engines.verify import open_as_shipped, verify, verify_build
from tests.networks import CLASSES, small_network
from tests.small_engines import RANGED, H, W, pictures


class Pictures:
    """Pictures whose truth is what a session says of them: its own mIoU is 1."""

    classes, palette, ignore, channels = CLASSES, ((0, 0, 0),) * len(CLASSES), 255, 3

    def __init__(self, session, count=4):
        self.images = pictures(count, seed=3)
        self.labels = session(self.images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return Sample(self.images[index], self.labels[index], f"picture {index}")


def test_a_range_of_sizes_is_verified_at_its_ends(ranged_folder, reference, monkeypatch):
    samples = Pictures(reference)
    with open_session(ranged_folder / RANGED, "onnxruntime", threads=1) as session:
        verdict = verify(session, reference, samples)
        assert list(verdict.ends) == ["16x16", "160x200"]
        assert min(verdict.ends.values()) > 0.99
        assert verdict.faults == []
        # right at the size the range is tuned for, wrong at its largest
        masks = session._masks
        monkeypatch.setattr(session, "_masks", lambda x: masks(x) if x.shape[2] < 160 else -masks(x))
        faults = verify(session, reference, samples).faults
    assert len(faults) == 1
    assert faults[0].startswith("at 160x200 ")


def test_a_near_tie_at_the_smallest_size_is_no_fault(ranged_folder, reference, monkeypatch):
    samples = Pictures(reference, count=8)
    turned = []

    def with_one_tie(image):
        labels = reference(image)
        if image.shape[:2] == (16, 16) and not turned:
            turned.append(True)
            labels[3, 5] ^= 1
        return labels

    with open_session(ranged_folder / RANGED, "onnxruntime", threads=1) as session:
        monkeypatch.setattr(verify_command, "one_at_a_time", lambda session: with_one_tie)
        ends = verify_command._agreement_at_ends(session, reference, samples)
    assert turned
    assert ends == {"16x16": 1.0 - 1 / (8 * 256), "160x200": 1.0}
    verdict = Verdict("x", "fp32", 8, 1.0, 1.0, 1.0, LIMITS["fp32"], ends=ends)
    assert verdict.faults == []


def test_verify_passes_what_is_equal_and_catches_what_is_not(engine_folder, reference):
    samples = Pictures(reference)
    with open_session(engine_folder / "model.fp32.onnx", threads=1) as session:
        verdict = verify(session, reference, samples)
        assert verdict.faults == []
        assert verdict.reference_miou == 1.0
        assert verdict.agreement > 0.999
        found = verdict.invariants
        assert (found.batches, found.repeatable, found.nan_stays, found.nan_refused) == ((2, 3, 8), True, True, True)
        assert found.row_disagreement is not None
        assert found.row_disagreement <= 0.001
        assert verdict.drop_error == 0.0
        honest = session._masks
        session._masks = lambda x: np.ascontiguousarray(honest(x)[:, ::-1])
        verdict = verify(session, reference, samples)
        assert len(verdict.faults) == 2
        session._masks = lambda x: honest(x[:1].repeat(len(x), axis=0))  # a batch that repeats its first row
        verdict = verify(session, reference, samples)
        assert len(verdict.faults) == 2
        assert verdict.faults[0].startswith("a row of a batch differs from its image alone in")
        assert verdict.faults[0].endswith("% of pixels, limit 0.10%")
        assert verdict.faults[1].startswith("scores that are no numbers")  # of a row it never looks at


def test_a_pixel_of_a_class_that_no_image_shows_costs_a_pixel(engine_folder, reference):
    samples = Pictures(reference)
    never = int(np.bincount(samples.labels.ravel(), minlength=len(CLASSES)).argmin())
    samples.labels[samples.labels == never] = samples.ignore
    assert (samples.labels[:, 0, 0] != samples.ignore).any()
    with open_session(engine_folder / "model.fp32.onnx", threads=1) as session:
        before = verify(session, reference, samples)
        honest = session._labels

        def but_one_pixel(x, size):
            labels = honest(x, size).copy()
            labels[:, 0, 0] = never
            return labels

        session._labels = but_one_pixel
        after = verify(session, reference, samples)
    assert after.miou < before.miou
    assert after.miou_drop < 0.01


def test_a_verdict_of_nan_fails():
    verdict = Verdict("x", "fp32", 1, float("nan"), 0.5, float("nan"), LIMITS["fp32"])
    assert len(verdict.faults) == 2
    assert not replace(verdict, miou=0.5, agreement=1.0).faults
    assert replace(verdict, miou=0.48, agreement=1.0, limit=Limit(0.01, 0.1, 0.1)).faults


def test_a_checkpoint_that_recognises_nothing_is_told():
    trained = Verdict("x", "fp32", 1, 0.5, 0.5, 1.0, LIMITS["fp32"])
    assert trained.warnings == []
    untrained = replace(trained, miou=0.0, reference_miou=0.0)
    assert untrained.faults == []
    assert [text[:39] for text in untrained.warnings] == ["the checkpoint itself reaches mIoU 0.00"]


@pytest.mark.parametrize("drop", [2, -5, "nan"])
def test_a_drop_that_is_none_leaves_the_verdict_alone(mixed, picture_root, drop, capsys):
    before = manifest_path(mixed / INT8).read_bytes()
    arguments = (mixed / INT8, "--checkpoint", mixed / "checkpoint", "--max-drop", drop)
    assert verify_on(picture_root, *arguments) == 2
    assert f"--max-drop {float(drop)}: wanted a loss of mIoU from 0 to 1" in capsys.readouterr().err
    assert manifest_path(mixed / INT8).read_bytes() == before


def test_the_labels_a_plan_ships_are_verified(engine_folder, reference, tmp_path):
    """The graph's own labels, which no other session runs: a wrong argmax in them must not pass."""
    with open_as_shipped(engine_folder / "model.int8.onnx", None, 1, None) as session:
        assert "upsample_argmax" in session.describe()["labels_by"]
    graph = onnx.load(engine_folder / "model.fp16.onnx")
    (node,) = (node for node in graph.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    write_graph(
        graph, replace(read_manifest(engine_folder / "model.fp16.onnx"), artifact="model.onnx"), tmp_path / "model.onnx"
    )
    with open_as_shipped(engine_folder / "model.fp16.onnx", None, 1, None) as session:
        # its own labels are the truth: random weights leave near ties, and 16 bits turn enough of them to cost mIoU
        samples = Pictures(session)
    for path, faults in ((engine_folder / "model.fp16.onnx", False), (tmp_path / "model.onnx", True)):
        with open_as_shipped(path, None, 1, None) as session:
            assert session.describe()["labels_by"] == "the graph"
            verdict = verify(session, reference, samples)
            assert bool(verdict.faults) == faults
    with open_session(tmp_path / "model.onnx", threads=1) as session:
        assert not verify(session, reference, samples, limit=LIMITS["int8"]).faults
        assert verdict.cpu_flags == tuple(cpu_flags())


def test_what_overflows_between_two_nodes_of_an_fp16_graph_fails(engine_folder, reference, tmp_path):
    """In float32 it would come back: a plan rounds each result, and so must what vouches for it."""
    graph = onnx.load(engine_folder / FP16)
    nodes = list(graph.graph.node)
    at = next(index for index, node in enumerate(nodes) if node.op_type == "Gelu")
    there = helper.make_node("Mul", [nodes[at].input[0], "many"], ["large"], name="there")
    back = helper.make_node("Div", ["large", "many"], ["small"], name="back")
    nodes[at].input[0] = "small"
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes[:at], there, back, *nodes[at:]])
    graph.graph.initializer.append(numpy_helper.from_array(np.float16(6e4), "many"))
    spoilt = tmp_path / FP16
    write_graph(graph, read_manifest(engine_folder / FP16), spoilt)
    with open_as_shipped(spoilt, None, 1, None) as session, pytest.raises(EngineError, match="fp16 ends at 65504"):
        verify(session, reference, Pictures(reference))


def test_bf16_graphs_are_verified_where_no_kernel_takes_bf16(engine_folder, reference, tmp_path):
    export(engine_folder / "checkpoint", tmp_path / "model.bf16.onnx", height=H, width=W, precision="bf16")
    quantize(tmp_path / "model.bf16.onnx", tmp_path / "model.bf16-int8.onnx", pictures(4, seed=1), target="tensorrt")
    for name in ("model.bf16.onnx", "model.bf16-int8.onnx"):
        with open_as_shipped(tmp_path / name, None, 1, None) as session:
            verdict = verify(session, reference, Pictures(session))
            assert verdict.faults == []
            # a bfloat16 is a float32 whose lower half is zero
            assert not (session.masks(np.zeros((1, 3, H, W), np.float32)).view(np.uint32) & 0xFFFF).any()


@pytest.mark.tensorrt
def test_a_build_ends_with_a_verdict(engine_folder, reference, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    graph, plan = tmp_path / FP32, tmp_path / "m.plan"
    for path in (graph, manifest_path(graph)):
        shutil.copy(engine_folder / path.name, path)
    build(graph, plan)
    verdict = verify_build(plan, graph, engine_folder / "checkpoint", Pictures(reference), threads=1)
    assert verdict.faults == []
    found = read_manifest(plan).verification
    if torch.cuda.is_available():
        assert found["tensorrt-rtx-fp32"]["passed"]
    else:
        assert set(found) == {"graph:onnxruntime-fp32"}
        assert found["graph:onnxruntime-fp32"]["sha256"] == read_manifest(graph).sha256
    save_model(small_network(seed=1), tmp_path / "other")
    with pytest.raises(EngineError, match="made of other weights"):
        verify_build(plan, graph, tmp_path / "other", Pictures(reference), threads=1)


@pytest.fixture
def mixed(engine_folder, tmp_path):
    """A copy of the engine folder, to be spoilt."""
    return shutil.copytree(engine_folder, tmp_path / "mixed")


def test_engines_of_another_network_are_noticed(engine_folder, mixed):
    assert set(manifests(mixed)) == {FP32, FP16, INT8, INT8_TENSORRT}
    weights = read_manifest(mixed / FP32).source["checkpoint"]
    assert read_manifest(mixed / INT8).source["checkpoint"] == weights == f"sha256:{open_folder(mixed).sha256}"
    whole = read_manifest(mixed / FP32)
    for spoilt, message in (
        (replace(whole, height=(H + 1,) * 3), r"images of 56x72 and 57x72"),
        (replace(whole, sha256="0" * 64), rf"{INT8}: made of another graph than the {FP32} beside it"),
        (replace(whole, source={}), rf"{FP32}: made of other weights \(nothing\)"),
    ):
        spoilt.write(mixed / FP32)
        with pytest.raises(EngineError, match=message):
            open_folder(mixed)
    manifest_path(mixed / FP32).write_text("{")
    with pytest.raises(EngineError, match="not a manifest"):
        open_folder(mixed)
    whole.write(mixed / FP32)
    save_model(small_network(seed=1), mixed / "checkpoint")
    with pytest.raises(EngineError, match=rf"{FP32}: made of other weights .*; pass the checkpoint it was made of"):
        open_folder(mixed)


def test_verify_refuses_a_checkpoint_the_engine_was_not_made_of(mixed, picture_root, capsys):
    save_model(small_network(seed=1), mixed / "other")
    (picture_root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    command = ["--dataset", "folder", "--data", str(picture_root), "--threads", "1"]
    assert verify_command.main([str(mixed / INT8), "--checkpoint", str(mixed / "other"), *command]) == 2
    assert "made of other weights" in capsys.readouterr().err


def verify_on(picture_root, *arguments):
    return verify_command.main([*map(str, arguments), "--dataset", "folder", "--data", str(picture_root)])


def test_verify_refuses_pictures_of_other_classes(mixed, picture_root, capsys):
    assert verify_on(picture_root, mixed / INT8, "--checkpoint", mixed / "checkpoint", "--threads", 1) == 2
    error = capsys.readouterr().err
    assert f"{mixed / INT8}: knows 5 classes where the dataset has 3" in error


def test_a_build_that_cannot_be_verified_at_its_end_is_not_begun(mixed, picture_root, tmp_path, capsys):
    command = [str(mixed / FP16), "--out", str(tmp_path / "m.plan"), "--checkpoint", str(mixed / "checkpoint")]
    command += ["--dataset", "folder", "--data", str(picture_root)]
    assert build_command.main(command) == 2
    assert f"{mixed / FP16}: knows 5 classes where the dataset has 3" in capsys.readouterr().err
    (picture_root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    save_model(small_network(seed=1), mixed / "checkpoint")
    assert build_command.main(command) == 2
    assert "made of other weights" in capsys.readouterr().err
    assert not (tmp_path / "m.plan").exists()


def test_a_rival_makes_its_labels_as_the_engine_does(mixed, picture_root, monkeypatch, capsys):
    (picture_root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    pairs = []
    monkeypatch.setattr(
        verify_command, "time_trade", lambda session, rival, images: pairs.append((session, rival)) or Trade("x", 1, 2)
    )
    for engine, rival, *named in ((INT8_TENSORRT, FP16), (INT8, FP32), (INT8, FP32, "--engine", "openvino")):
        arguments = ("--checkpoint", mixed / "checkpoint", "--rival", mixed / rival, *named)
        verify_on(picture_root, mixed / engine, *arguments)
    assert [(type(mine), type(rival)) for mine, rival in pairs] == [
        (WholeGraphSession, WholeGraphSession),
        (OnnxRuntimeSession, OnnxRuntimeSession),
        (OpenVinoSession, OpenVinoSession),
    ]
    mine, rival = pairs[-1]
    assert rival.name == f"openvino-{mine.describe()['floats']}"  # in bf16 both, where the CPU has it


def test_verify_names_the_files_whose_classes_differ(mixed, picture_root, capsys):
    (picture_root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    config = mixed / "checkpoint" / "config.json"
    config.write_text(config.read_text().replace('"tree"', '"bush"'))
    assert verify_on(picture_root, mixed / INT8, "--checkpoint", mixed / "checkpoint", "--threads", 1) == 2
    error = capsys.readouterr().err
    assert f"{mixed / INT8} and {mixed / 'checkpoint'}: have other classes (one has 'tree' for 'bush')" in error


def test_a_verdict_is_not_written_over_what_it_is_of(mixed, picture_root, capsys):
    before = sha256(mixed / INT8)
    for out in (mixed / INT8, manifest_path(mixed / INT8)):
        arguments = (mixed / INT8, "--checkpoint", mixed / "checkpoint", "--out", out)
        assert verify_on(picture_root, *arguments) == 2
        assert f"--out {out}: is what is verified" in capsys.readouterr().err
    assert sha256(mixed / INT8) == before == read_manifest(mixed / INT8).sha256
