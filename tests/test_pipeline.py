from dataclasses import replace

import pytest
import torch

from segmenter.checkpoint import save_model
from segmenter.errors import EngineError
from segmenter.model import Segmenter
from segmenter_engines import pipeline
from segmenter_engines.manifest import read_manifest


@pytest.fixture
def checkpoint(tmp_path, tiny_model):
    torch.manual_seed(1)
    encoder = replace(tiny_model.config.encoder, image_size=(40, 56))
    save_model(Segmenter(replace(tiny_model.config, encoder=encoder)), tmp_path / "ckpt")
    return tmp_path / "ckpt"


def command(checkpoint, picture_root, out):
    data = ["--dataset", "folder", "--data", str(picture_root), "--images", "2", "--verify-images", "2"]
    return [str(checkpoint), "--out", str(out), *data, "--threads", "1"]


def test_a_folder_holds_every_engine_or_the_reason_it_does_not(checkpoint, picture_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None)  # as where tensorrt-rtx is not installed
    out = tmp_path / "engines"
    stale = out / pipeline.PLAN_FP16
    out.mkdir()
    stale.write_bytes(b"of an older checkpoint")
    # random weights have near ties everywhere, so 8 bits may fail their limit here; fp32 may not
    status = pipeline.main(command(checkpoint, picture_root, out))
    told = capsys.readouterr()
    for name in pipeline.ARTIFACTS[:4]:
        assert (out / name).is_file()
        assert not pipeline.reason_path(out / name).exists()
        verdicts = read_manifest(out / name).verification
        assert all(verdict["passed"] for verdict in verdicts.values()) or "int8" in name or "fp16" in name
    for name in pipeline.ARTIFACTS[4:]:
        assert not (out / name).exists()
        assert "pip install" in pipeline.reason_path(out / name).read_text()
        assert f"{name}" in told.out
    passed = all(
        verdict["passed"]
        for name in pipeline.ARTIFACTS[:4]
        for verdict in read_manifest(out / name).verification.values()
    )
    assert status == (0 if passed else 2)


def test_a_step_that_fails_leaves_its_reason_and_the_others_go_on(checkpoint, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise EngineError("no\nluck")

    monkeypatch.setattr(pipeline, "quantize", refuse)
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None)
    folder = tmp_path / "engines"
    from segmenter import load_model

    save_model(load_model(checkpoint), folder / "checkpoint")
    reasons = pipeline.make_artifacts(folder, 40, 56, [], say=lambda line: None)
    assert reasons[pipeline.INT8] == "no luck"
    assert pipeline.reason_path(folder / pipeline.INT8).read_text() == "no luck\n"
    assert (folder / pipeline.FP16).is_file()


def test_a_checkpoint_for_other_classes_is_refused_before_any_work(checkpoint, tmp_path, capsys):
    assert pipeline.main([str(checkpoint), "--out", str(tmp_path / "e"), "--dataset", "shapes"]) == 2
    assert "3 classes" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
