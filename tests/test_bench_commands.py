"""The bench on a small network, from engine folder to page."""

import json
import shlex
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch

from segmenter.checkpoint import save_model
from segmenter.config import variant
from segmenter.datasets import open_dataset
from segmenter.errors import CheckpointError, ConfigError, VerificationError
from segmenter.files import sha256
from segmenter.preprocess import normalize
from segmenter_bench import miou, report, throughput
from segmenter_bench.models import MARK, open_folder, pictures, random_folder
from segmenter_bench.random_weights import random_model
from segmenter_bench.runs import read_run, require_writable
from segmenter_bench.sections import drop_cell
from segmenter_engines import artifacts
from segmenter_engines.export import export
from segmenter_engines.quantize import quantize
from tests.bench_samples import miou_run, throughput_run
from tests.networks import small_network

CODES = (0, 200, 7, 90)  # labels between which an interpolation would be seen
QUICK = ("--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An engine folder for the classes of `shapes`: checkpoint, fp32 and int8 graphs of 128x128, no plans."""
    folder = tmp_path_factory.mktemp("engines")
    shapes = open_dataset("shapes", None, "val")
    save_model(small_network(classes=shapes.classes, image_size=(128, 128)), folder / "checkpoint")
    export(folder / "checkpoint", folder / "model.fp32.onnx", height=128, width=128)
    quantize(folder / "model.fp32.onnx", folder / "model.int8.onnx", [shapes[index].image for index in range(4)])
    return folder


def test_throughput_and_miou_of_real_engines_make_a_report(folder, tmp_path, capsys):
    quick = (
        "--rounds",
        "2",
        "--burst-seconds",
        "0.01",
        "--batch",
        "1",
        "2",
        "--images",
        "2",
        "--network",
        "--logits",
        *QUICK,
    )
    engines = ("--engine", "onnxruntime-fp32", "tensorrt-rtx")
    status = throughput.main(["--folder", str(folder), "--out", str(tmp_path), *engines, *quick])
    assert status == 1  # plans were asked for, and none is there
    (path,) = tmp_path.glob("throughput-*.json")
    run = read_run(path)
    assert [(row["engine"], row["region"], row["batch"]) for row in run["rows"]] == [
        ("onnxruntime-fp32", region, batch) for region in ("labels", "network", "logits") for batch in (1, 2)
    ]
    for row in run["rows"]:
        assert (row["status"], row["reason"]) == ("ok", None)
        assert row["agreement"] >= row["agreement_limit"] == 0.999
        if row["region"] == "logits":  # the rivals have no other way, and so no row of this one
            assert row["ratio"] is None
        else:
            assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["timing"]["ms_p50"] <= row["timing"]["ms_p90"] <= row["timing"]["ms_p99"]
        assert row["memory_bytes"] > 50 << 20
        assert 0 <= row["extra_memory_bytes"] < row["memory_bytes"]
        assert row["describe"]["threads"] == 1
        assert row["sha256"] == sha256(folder / "model.fp32.onnx")
    assert [one["engine"] for one in run["unavailable"]] == ["tensorrt-rtx-fp16", "tensorrt-rtx-int8"]
    assert "not in the engine folder" in run["unavailable"][0]["reason"]
    assert str(path) in capsys.readouterr().out

    arguments = [
        "--folder",
        str(folder),
        "--out",
        str(tmp_path),
        "--engine",
        "onnxruntime-int8",
        "--limit",
        "3",
        *QUICK,
    ]
    assert miou.main([*arguments, "--require-miou", "0.99"]) == 2
    told = capsys.readouterr()
    assert "error: mIoU below the required 0.99: onnxruntime-int8 has 0." in told.err
    (path,) = tmp_path.glob("miou-*.json")
    run = read_run(path)
    (row,) = run["rows"]
    assert 0.5 < row["agreement"] < 1.0
    assert len(row["iou"]) == 8
    assert row["drop"] is not None
    assert row["sha256"] == sha256(folder / "model.int8.onnx")
    assert run["settings"]["images"] == len(run["examples"]) == 3
    assert list(run["examples"][0]["labels"]) == ["onnxruntime-int8"]

    assert report.main([str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count("<h2>") == 1  # both runs belong to one network
    assert "onnxruntime-int8" in text
    assert "onnxruntime-fp32" in text


def test_a_miou_run_that_is_cut_keeps_the_engines_it_has(folder, tmp_path, monkeypatch):
    judge, stopped = miou._row, []

    def cut(judged, *rest):
        if judged.one.entry.name == "onnxruntime-int8":
            stopped.append(judged)
            raise KeyboardInterrupt
        return judge(judged, *rest)

    monkeypatch.setattr(miou, "_row", cut)
    engines = ("--engine", "eager", "onnxruntime-int8", "--limit", "2", "--examples", "1")
    with suppress(KeyboardInterrupt):
        miou.main(["--folder", str(folder), "--out", str(tmp_path), *engines, *QUICK])
    assert stopped
    (path,) = tmp_path.glob("miou-*.json")
    run = read_run(path)
    assert [row["engine"] for row in run["rows"]] == ["eager"]
    assert list(run["examples"][0]["labels"]) == ["eager"]
    assert report.main([str(path), "--out", str(tmp_path / "report.html")]) == 0


def test_pictures_of_another_size_are_judged_at_their_own(folder, tmp_path, monkeypatch):
    asked = []

    class Worker:
        def labels(self, images):
            asked.append(images.shape)
            return np.repeat(np.array(CODES, np.uint8), 16)[None, :, None].repeat(96, axis=2)

    one = type("One", (), {"worker": Worker()})()
    judged = miou._Judged(one, (64, 96), None, [0])
    labels = judged(np.zeros((128, 48, 3), np.uint8))
    assert asked == [(1, 64, 96, 3)]
    assert labels.shape == (128, 48)
    assert (labels[:, 0] == np.repeat(CODES, 32)).all()
    assert judged.kept[0] is labels
    assert judged.same == judged.total == labels.size


def test_commands_say_what_they_want(tmp_path, folder, capsys):
    (tmp_path / "file").touch()
    unwritable = str(tmp_path / "file" / "bench")
    for main, arguments, complaint in (
        (throughput.main, [], "pass either --folder ENGINE_FOLDER or --variant NAME"),
        (throughput.main, ["--folder", str(tmp_path)], "no folder 'checkpoint' in it"),
        (throughput.main, ["--folder", str(tmp_path)], "fill one with `segmenter pipeline CHECKPOINT --out FOLDER`"),
        (throughput.main, ["--folder", str(tmp_path / "none")], "none: no folder; wanted an engine folder"),
        (
            throughput.main,
            ["--folder", str(folder / "checkpoint")],
            "is a checkpoint; wanted an engine folder: fill one",
        ),
        (throughput.main, ["--folder", str(folder), "--rounds", "0"], "--rounds 0: wanted at least 1"),
        (throughput.main, ["--folder", str(folder), "--burst-seconds", "-1"], "--burst-seconds -1.0: wanted"),
        (throughput.main, ["--folder", str(folder), "--burst-seconds", "nan"], "nan: wanted at least 0"),
        (throughput.main, ["--folder", str(folder), "--burst-seconds", "inf"], "a turn that ends"),
        (throughput.main, ["--folder", str(folder), "--warmup", "-3"], "--warmup -3: wanted at least 0"),
        (throughput.main, ["--folder", str(folder), "--batch", "0"], "--batch 0: wanted sizes of at least 1"),
        (
            throughput.main,
            ["--folder", str(folder), "--batch", "1", "999"],
            "--batch 999: onnxruntime-fp32 takes at most 64",
        ),
        (throughput.main, ["--folder", str(folder), "--height", "64"], "--height 64: the engines of"),
        (throughput.main, ["--folder", str(folder), "--width", "64"], "--width 64: the engines of"),
        (throughput.main, ["--folder", str(folder), "--out", unwritable], f"--out {unwritable}: cannot write there"),
        (miou.main, ["--folder", str(folder), "--out", unwritable], f"--out {unwritable}: cannot write there"),
        (throughput.main, ["--folder", str(folder), "--engine", "fastest"], "engine 'fastest' is unknown"),
        (throughput.main, ["--variant", "Seg-XXL"], "variant 'Seg-XXL' is unknown"),
        (miou.main, ["--folder", str(folder), "--examples", "-1"], "--examples -1"),
        (miou.main, ["--folder", str(folder), "--dataset", "camvid", "--data", str(tmp_path)], f"{tmp_path}"),
        (miou.main, ["--folder", str(folder), "--require-miou", "62"], "--require-miou 62.0: wanted 0 to 1"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert complaint in error


@pytest.mark.parametrize("name", ["Seg-Ti-Mask/16", "Seg-S/16"])
def test_random_weights_are_seeded_and_give_labels_worth_comparing(name):
    config = variant(name, 50, image_size=(256, 256))
    first, second = random_model(config), random_model(config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    images = normalize(np.stack(pictures(2, (256, 256))), config.preprocess)
    with torch.inference_mode():
        tokens, labels = first.encoder(images), first.labels(images)
    assert 0.5 < tokens.std() < 2.0
    assert (labels[0] != labels[1]).float().mean() > 0.1
    for one in labels:
        found, counts = one.unique(return_counts=True)
        assert len(found) > 15
        assert counts.max() < 0.6 * one.numel()


def test_a_folder_of_random_weights_is_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        artifacts, "make_artifacts", lambda folder, *size_and_images, say: made.append((folder, size_and_images))
    )
    subject = random_folder("Seg-Ti/16", 40, 64, 3, tmp_path)
    assert random_folder("Seg-Ti/16", 40, 64, 3, tmp_path) == subject
    ((folder, (height, width, images)),) = made
    assert (folder, height, width) == (subject.folder, 40, 64)
    assert {image.shape for image in images} == {(40, 64, 3)}
    assert not subject.trained
    assert subject.config.encoder.image_size == (32, 64)
    assert json.loads((subject.folder / MARK).read_text())["variant"] == "Seg-Ti/16"
    assert random_folder("Seg-Ti/16", 40, 64, 4, tmp_path).folder != subject.folder
    with pytest.raises(ConfigError, match="size 8x64 is smaller than one 16 pixel patch"):
        random_folder("Seg-Ti/16", 8, 64, 3, tmp_path)


def test_an_engine_folder_is_opened_with_the_size_of_its_engines(folder, tmp_path):
    subject = open_folder(folder)
    assert subject.size == (128, 128)
    assert subject.trained
    assert subject.facts()["classes"] == list(subject.config.classes)
    with pytest.raises(CheckpointError, match="wanted an engine folder"):
        open_folder(tmp_path)


def test_a_required_miou_is_met_by_every_engine_or_refused():
    rows = [{"engine": "good", "miou": 0.7}, {"engine": "bad", "miou": 0.61}, {"engine": "dead", "miou": None}]
    miou._require(rows[:1], 0.7)
    with pytest.raises(VerificationError, match=r"required 0\.62: bad has 0\.6100; dead has -"):
        miou._require(rows, 0.62)
    with pytest.raises(VerificationError, match=r"bad has nan"):
        miou._require([{"engine": "bad", "miou": float("nan")}], 0.0)
    with pytest.raises(VerificationError, match="no engine was judged"):
        miou._require([], 0.0)


def test_a_change_of_miou_is_the_engines_minus_pytorchs():
    assert [drop_cell(drop) for drop in (0.0017, -0.0003, 0.0, 4e-5, -4e-5, None)] == [
        "-0.0017",
        "+0.0003",
        "0.0000",
        "0.0000",
        "0.0000",
        "-",
    ]


def test_the_miou_table_shows_the_sign_of_the_page(capsys):
    run = miou_run()
    run["rows"] = [row | {"drop": drop} for row, drop in zip(run["rows"], (0.0017, -0.0003, -1e-9), strict=False)]
    miou.show(run)
    printed = capsys.readouterr().out
    assert "vs PyTorch" in printed
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert [lines[row["engine"]][2] for row in run["rows"]] == ["-0.0017", "+0.0003", "0.0000"]


def test_a_run_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    require_writable(tmp_path / "not" / "yet")
    assert not list(tmp_path.iterdir())


def test_benching_a_checkpoint_needs_no_package_of_the_engines():
    """Where onnx is missing, PyTorch's engines are still benched."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('onnx', 'onnxruntime', 'onnxslim', 'openvino')));"
        "import segmenter_bench.miou, segmenter_bench.throughput, segmenter_bench.worker;"
        "import segmenter_engines.sessions.torch"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_made_up_pictures_have_the_size_asked_for():
    first, second = pictures(2, (40, 72))
    assert first.shape == second.shape == (40, 72, 3)
    assert first.dtype == np.uint8
    assert (first != second).any()


def test_the_command_of_a_run_names_its_subcommand_once():
    from segmenter_bench.runs import command_of

    for arguments in (["bench-miou", "--folder", "m"], ["--folder", "m"]):
        assert command_of("segmenter bench-miou", arguments) == "segmenter bench-miou --folder m"


def test_the_command_of_a_run_is_what_a_shell_runs_again():
    from segmenter_bench.runs import command_of

    told = command_of("segmenter bench-miou", ["--folder", "my m", "--title", "5 $ a day"])
    assert shlex.split(told) == ["segmenter", "bench-miou", "--folder", "my m", "--title", "5 $ a day"]
    assert command_of("segmenter report", []) == "segmenter report"


@pytest.mark.parametrize("columns", ["40", "80"])
def test_tables_are_whole_on_a_narrow_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    run = throughput_run(trained=False)
    for row in run["rows"]:
        row |= {"others_busy": 0.5, "extra_memory_bytes": 10_000_000}
    throughput.show(run)
    miou.show(miou_run())
    printed = capsys.readouterr().out
    assert "…" not in printed
    (heads,) = {line for line in printed.splitlines() if "img/s" in line}
    assert heads.split()[-2:] == ["agree", "%"]
