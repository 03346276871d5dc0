"""From a checkpoint to engines on a small network: export, plans, what does not fit, the commands."""

import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segmenter.checkpoint import save_model
from segmenter.errors import EngineError
from segmenter.files import sha256
from segmenter.preprocess import normalize
from segmenter_engines import export as export_command
from segmenter_engines import open_session
from segmenter_engines import quantize as quantize_command
from segmenter_engines import verify as verify_command
from segmenter_engines.build import build
from segmenter_engines.export import export
from segmenter_engines.limits import LIMITS
from segmenter_engines.manifest import manifest_path, read_manifest
from segmenter_engines.quantize import quantize
from tests.networks import CLASSES
from tests.small_engines import H, W, pictures


def test_the_graph_is_whole_and_explains_itself(engine_folder):
    graph = onnx.load(engine_folder / "model.fp32.onnx")
    counts = Counter(node.op_type for node in graph.graph.node)
    assert counts["LayerNormalization"] == 2 * 2 + 1 + 2 + 1 + 1  # two encoder blocks, one decoder block, last norms
    assert counts["Gelu"] == 3
    assert {node.domain for node in graph.graph.node} == {""}
    assert [output.name for output in graph.graph.output] == ["labels", "masks"]
    facts = {prop.key: prop.value for prop in graph.metadata_props}
    assert facts["classes"].split("\n") == list(CLASSES)
    assert facts["mean"] == "0.5 0.5 0.5"


@pytest.mark.parametrize("batch", [1, 3])
def test_labels_masks_and_logits_come_out_of_any_onnx_runtime(engine_folder, reference, tmp_path, batch):
    export(
        engine_folder / "checkpoint", tmp_path / "model.onnx", height=H, width=W, outputs=("labels", "masks", "logits")
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = pictures(batch)
    feed = normalize(images, reference.spec.preprocess).numpy()
    labels, masks, logits = session.run(["labels", "masks", "logits"], {"images": feed})
    assert labels.dtype == np.uint8
    assert masks.shape == (batch, len(CLASSES), 4, 5)
    np.testing.assert_allclose(logits, reference.logits(images), rtol=1e-3, atol=1e-4)
    assert (labels != reference(images)).mean() <= 1e-3


def test_artifacts_and_engines_that_do_not_fit_are_named(engine_folder, tmp_path):
    with pytest.raises(EngineError, match="unknown; choose one of eager"):
        open_session(engine_folder / "model.fp32.onnx", "warp")
    with pytest.raises(EngineError, match="onnxruntime or openvino"):
        open_session(engine_folder / "model.fp32.onnx", "eager")
    with pytest.raises(EngineError, match="no such artifact"):
        open_session(tmp_path / "nothing")
    with pytest.raises(EngineError, match="no such engine file"):
        open_session(tmp_path / "nothing.onnx")
    with pytest.raises(EngineError, match=r"is a folder, wanted an engine; pass an \.onnx or \.plan file"):
        read_manifest(engine_folder)
    copy = tmp_path / "model.fp32.onnx"
    shutil.copy(engine_folder / "model.fp32.onnx", copy)
    with pytest.raises(EngineError, match=r"no manifest model\.fp32\.onnx\.json"):
        open_session(copy)
    shutil.copy(manifest_path(engine_folder / "model.fp32.onnx"), manifest_path(copy))
    copy.write_bytes(copy.read_bytes() + b"x")
    written = read_manifest(copy, check_hash=False)
    for command, advice in (
        ("segmenter export ck --out m.onnx", "segmenter export ck --out m.onnx"),
        ("pytest", "segmenter export CHECKPOINT --out model.fp32.onnx"),
    ):
        replace(written, command=command).write(copy)
        told = (
            f"{copy}: is not the file its manifest vouches for (expected SHA-256 {written.sha256}, it has"
            f" {sha256(copy)}); copy both files again, or make it again: `{advice}`"
        )
        with pytest.raises(EngineError, match=f"^{re.escape(told)}$"):
            open_session(copy)
    manifest_path(copy).write_text("{}")
    with pytest.raises(EngineError, match="format None"):
        open_session(copy)


def test_requests_export_and_quantize_refuse(engine_folder, tmp_path):
    with pytest.raises(EngineError, match=r"named \*\.onnx"):
        export(engine_folder / "checkpoint", tmp_path / "model.plan")
    with pytest.raises(EngineError, match="quantize"):
        export(engine_folder / "checkpoint", tmp_path / "m.onnx", precision="int8")
    with pytest.raises(EngineError, match="smaller than one 16 pixel patch"):
        export(engine_folder / "checkpoint", tmp_path / "m.onnx", height=8, width=64)
    with pytest.raises(EngineError, match="--precision fp16"):
        quantize(engine_folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1), target="tensorrt")
    with pytest.raises(EngineError, match="no calibration images"):
        quantize(engine_folder / "model.fp32.onnx", tmp_path / "m.onnx", [])
    with pytest.raises(EngineError, match=f"calibration image 64x64.*{H}x{W}"):
        quantize(engine_folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1, 64, 64))
    assert not list(tmp_path.iterdir())


def test_what_an_artifact_is_made_of_is_never_written_over(engine_folder, tmp_path):
    source = shutil.copy(engine_folder / "model.fp32.onnx", tmp_path / "model.fp32.onnx")
    shutil.copy(manifest_path(engine_folder / "model.fp32.onnx"), manifest_path(source))
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    before = sha256(source)
    for out in (source, tmp_path / "link" / "model.fp32.onnx"):
        with pytest.raises(EngineError, match=r"model\.fp32\.onnx: is the file it would be made of"):
            quantize(source, out, pictures(1))
    with pytest.raises(EngineError, match=r"model\.txt: what is written here is named \*\.onnx"):
        quantize(source, tmp_path / "model.txt", pictures(1))
    with pytest.raises(EngineError, match=r"is the file it would be made of"):
        build(tmp_path / "m.plan", tmp_path / "m.plan")
    assert sha256(source) == before
    assert read_manifest(source).precision == "fp32"
    assert not (tmp_path / "model.txt").exists()


def test_the_commands_chain(engine_folder, tmp_path, capsys, monkeypatch, picture_root, tiny_model):
    """checkpoint -> ONNX -> int8 -> verified, through the command line, on a dataset on disk."""
    tiny = replace(tiny_model.config.encoder, image_size=(40, 56))
    from segmenter.model import Segmenter

    torch.manual_seed(1)
    save_model(Segmenter(replace(tiny_model.config, encoder=tiny)), tmp_path / "ckpt")
    assert export_command.main([str(tmp_path / "ckpt"), "--out", str(tmp_path / "m.onnx")]) == 0
    data = ["--dataset", "folder", "--data", str(picture_root)]
    assert (
        quantize_command.main([str(tmp_path / "m.onnx"), "--out", str(tmp_path / "q.onnx"), "--images", "2", *data])
        == 0
    )
    command = ["--checkpoint", str(tmp_path / "ckpt"), "--engine", "openvino", *data]
    assert verify_command.main([str(tmp_path / "m.onnx"), *command]) == 0
    assert "100" in capsys.readouterr().out
    assert read_manifest(tmp_path / "m.onnx").verification["openvino-fp32"]["passed"] is True
    monkeypatch.setitem(LIMITS, "int8", replace(LIMITS["int8"], miou_drop=-1.0))  # which no engine keeps
    assert verify_command.main([str(tmp_path / "q.onnx"), *command]) != 0
    assert "mIoU dropped by" in capsys.readouterr().err
    assert read_manifest(tmp_path / "q.onnx").verification["openvino-int8"]["passed"] is False
