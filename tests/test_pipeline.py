"""Checkpoint to engine folder: what is made, what is verified, and what is no reason to exit with 0."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmenter.checkpoint import load_model, save_model
from segmenter.datasets import open_dataset
from segmenter.errors import EngineError, Unavailable
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter_engines import artifacts, pipeline
from segmenter_engines.export import export
from segmenter_engines.folder import ARTIFACTS, CHECKPOINT, FP16, FP32, INT8, INT8_TENSORRT, PLANS, reason_path
from segmenter_engines.manifest import manifest_path, read_manifest
from segmenter_engines.sessions import open_engine
from tests.fake_machine import machine_fixture  # noqa: F401 - a fixture
from tests.fake_tensorrt import write_plan


@pytest.fixture
def checkpoint(tmp_path, tiny_model, picture_root):
    """A network that has learnt the pictures: random weights have near ties everywhere, and rounding turns them."""
    torch.manual_seed(1)
    config = replace(tiny_model.config, encoder=replace(tiny_model.config.encoder, image_size=(40, 56)))
    model = Segmenter(config).train()
    samples = open_dataset("folder", picture_root, "train")
    images = normalize(np.stack([samples[index].image for index in range(len(samples))]), config.preprocess)
    labels = torch.from_numpy(np.stack([samples[index].labels for index in range(len(samples))])).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels, ignore_index=255).backward()
        optimizer.step()
    save_model(model.eval(), tmp_path / "ckpt")
    return tmp_path / "ckpt"


@pytest.fixture
def without_tensorrt(monkeypatch):
    monkeypatch.setattr(artifacts, "find_spec", lambda name: None)


def command(checkpoint, picture_root, out):
    data = ["--dataset", "folder", "--data", str(picture_root), "--images", "2", "--verify-images", "2"]
    return [str(checkpoint), "--out", str(out), *data, "--threads", "1"]


def test_a_folder_holds_every_engine_verified_or_the_reason_it_does_not(
    checkpoint, picture_root, tmp_path, without_tensorrt, capsys
):
    out = tmp_path / "engines"
    stale = out / PLANS[0]
    out.mkdir()
    for path in (stale, manifest_path(stale)):
        path.write_bytes(b"of an older checkpoint")
    assert pipeline.main(command(checkpoint, picture_root, out)) == 0
    told = capsys.readouterr()
    engines = {FP32: {"onnxruntime-fp32", "openvino-fp32"}, INT8: {"onnxruntime-int8", "openvino-int8"}}
    engines |= {FP16: {"onnxruntime-fp16"}, INT8_TENSORRT: {"onnxruntime-int8"}}
    for name in ARTIFACTS[:4]:
        assert not reason_path(out / name).exists()
        verdicts = read_manifest(out / name).verification
        assert set(verdicts) == engines[name]
        assert all(verdict["passed"] for verdict in verdicts.values())
        assert all(verdict["reference_miou"] > 0.5 for verdict in verdicts.values())  # or passing says little
    with open_engine(out / INT8, "openvino", threads=1) as session:
        floats = session.describe()["floats"]  # bf16 where the CPU has it
    assert read_manifest(out / INT8).verification["openvino-int8"]["trade"]["against"] == f"openvino-{floats}"
    for name in PLANS:
        assert not (out / name).exists()
        assert not manifest_path(out / name).exists()
        assert "pip install" in reason_path(out / name).read_text()
        assert f"{name}" in told.out


def fill(checkpoint, folder, *precisions):
    save_model(load_model(checkpoint), folder / CHECKPOINT)
    for precision in precisions:
        export(folder / CHECKPOINT, folder / f"model.{precision}.onnx", precision=precision)


def test_a_step_that_fails_leaves_its_reason_and_the_others_go_on(checkpoint, tmp_path, monkeypatch, without_tensorrt):
    def refuse(*args, **kwargs):
        raise EngineError("no\nluck")

    monkeypatch.setattr(artifacts, "quantize", refuse)
    folder = tmp_path / "engines"
    fill(checkpoint, folder)
    absent = artifacts.make_artifacts(folder, 40, 56, [], say=lambda line: None)
    assert absent[INT8] == artifacts.Absence("no luck", fault=True)
    assert reason_path(folder / INT8).read_text() == "no luck\n"
    assert (folder / FP16).is_file()
    assert not any(absent[name].fault for name in PLANS)


def test_a_pipeline_that_makes_nothing_fails(checkpoint, picture_root, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise EngineError("no luck")

    monkeypatch.setattr(artifacts, "export", refuse)
    assert pipeline.main(command(checkpoint, picture_root, tmp_path / "engines")) == 2
    error = capsys.readouterr().err
    assert f"{FP32} not made: no luck" in error
    assert INT8 not in error  # said once, of what it would be made of


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--height", "4"], "--height 4 --width 56: smaller than one 8 pixel patch"),
        (["--width", "0"], "--height 40 --width 0: smaller than one 8 pixel patch"),
        (["--threads", "0"], "--threads 0: wanted at least 1"),
        (["--images", "0"], "0 calibration images: wanted at least 1"),
        ([], "p1.png"),
    ],
)
def test_what_is_refused_costs_no_older_engine(checkpoint, picture_root, tmp_path, arguments, complaint, capsys):
    out = tmp_path / "engines"
    out.mkdir()
    for name in ARTIFACTS:
        for path in (out / name, manifest_path(out / name), reason_path(out / name)):
            path.write_bytes(b"of an older run")
    before = sorted(out.rglob("*"))
    if not arguments:
        (picture_root / "images" / "train" / "p1.png").write_bytes(b"no picture")
    assert pipeline.main([*command(checkpoint, picture_root, out), "--images", "3", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before


def test_a_graph_that_does_not_open_is_a_fault_and_a_missing_runtime_is_not(
    checkpoint, tmp_path, picture_root, monkeypatch
):
    folder, samples = tmp_path / "engines", open_dataset("folder", picture_root, "val")
    fill(checkpoint, folder, "fp32", "fp16")
    honest = pipeline.open_as_shipped

    def open_as_shipped(path, engine, threads, precision):
        if path.name == FP16:
            raise EngineError("cannot load it")
        if engine == "openvino":
            raise Unavailable("openvino is not installed")
        return honest(path, engine, threads, precision)

    monkeypatch.setattr(pipeline, "open_as_shipped", open_as_shipped)
    assert pipeline.verify_artifacts(folder, samples, 1) == (f"{FP16} in onnxruntime: cannot load it",)

    def open_nothing(path, engine, threads, precision):
        raise Unavailable(f"{engine} is not installed")

    monkeypatch.setattr(pipeline, "open_as_shipped", open_nothing)
    (fault,) = pipeline.verify_artifacts(folder, samples, 1)
    assert fault.startswith("no engine could be verified")


def test_a_gpu_that_the_plans_are_not_for_is_no_fault(checkpoint, tmp_path, picture_root, machine, capsys):
    folder = tmp_path / "engines"
    fill(checkpoint, folder, "fp32")
    plan = write_plan(folder / PLANS[0], compute_capabilities=("8.0", "12.0"))
    replace(read_manifest(plan), source=read_manifest(folder / FP32).source).write(plan)
    assert pipeline.verify_artifacts(folder, open_dataset("folder", picture_root, "val"), 1) == ()
    assert "not verified here: " in capsys.readouterr().out


def test_an_engine_that_fails_while_it_runs_is_a_fault_and_the_others_go_on(checkpoint, tmp_path, picture_root):
    model = load_model(checkpoint)
    with torch.no_grad():
        model.decoder.proj_dec.weight *= 1e4
        model.decoder.proj_dec.bias += 1e5  # beyond 65504, the end of fp16
    save_model(model, checkpoint)
    folder = tmp_path / "engines"
    fill(checkpoint, folder, "fp32", "fp16")
    (fault,) = pipeline.verify_artifacts(folder, open_dataset("folder", picture_root, "val"), 1)
    assert fault.startswith(f"{FP16} in onnxruntime: onnxruntime-fp16, tiny: scores that are no numbers")
    assert set(read_manifest(folder / FP32).verification) == {"onnxruntime-fp32", "openvino-fp32"}


def test_a_pipeline_that_is_stopped_leaves_no_engine_of_another_network(
    checkpoint, picture_root, tmp_path, monkeypatch
):
    out = tmp_path / "engines"
    out.mkdir()
    for name in ARTIFACTS:
        for path in (out / name, manifest_path(out / name), reason_path(out / name)):
            path.write_bytes(b"of an older checkpoint")

    def stop(model, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "save_model", stop)
    assert pipeline.main(command(checkpoint, picture_root, out)) == 130
    assert not list(out.iterdir())


def test_a_checkpoint_for_other_classes_is_refused_before_any_work(checkpoint, tmp_path, capsys):
    assert pipeline.main([str(checkpoint), "--out", str(tmp_path / "e"), "--dataset", "shapes"]) == 2
    assert "3 classes" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
