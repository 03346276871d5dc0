"""The training command: it learns, leaves everything behind, and says what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segmenter import load_model
from segmenter.checkpoint import save_model
from segmenter.inference import Inference
from segmenter.model import Segmenter
from segmenter.protocol import paper_inference
from segmenter.training.state import RunFolder
from segmenter.vit import resize_position
from tests.training.runs import TINY, losses, metrics, refuse, run_here, train


def test_it_learns_and_leaves_everything_behind(tmp_path: Path) -> None:
    options = ("--steps", "40", "--lr", "3e-3", "--amp", "auto", "--augment", "none", "--workers", "1")
    assert train(tmp_path, *options) == 0
    by_step = list(losses(tmp_path).values())
    assert sum(by_step[-5:]) < 0.8 * sum(by_step[:5])
    report = metrics(tmp_path)
    assert report["step"] == 40
    assert set(report["iou"]) == set(load_model(tmp_path / "best").config.classes)
    assert 0 < report["miou"] <= 1
    assert report["images_seen"] == 80
    assert not load_model(tmp_path / "last").training


def test_other_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--steps", "4", "--lr", "1e-3") == 0
    # ended: nothing to do, and nothing done
    assert train(tmp_path, "--steps", "4", "--lr", "1e-3") == 0
    assert "this run has ended" in capsys.readouterr().out
    error = refuse(capsys, tmp_path, "--steps", "6", "--lr", "2e-3")
    assert "lr 0.001 there, 0.002 here" in error
    assert "steps 4 there, 6 here" in error
    assert train(tmp_path, "--steps", "6", "--lr", "2e-3", "--resume", "always") == 0
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert metrics(tmp_path)["last"]["step"] == 6
    # starting over deletes nothing before the new run is known to be possible
    refuse(capsys, tmp_path, "--steps", "2", "--resume", "never", "--lr", "-1")
    assert metrics(tmp_path)["last"]["step"] == 6
    assert train(tmp_path, "--steps", "2", "--resume", "never") == 0
    assert list(losses(tmp_path)) == [1, 2]
    assert metrics(tmp_path)["step"] == 2


@pytest.mark.parametrize("change", [["--eval-window", "32"], ["--limit", "3"], []])
def test_best_is_chosen_among_equal_evaluations(
    change: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr("segmenter.training.run.summary", lambda *_: {**UNMEASURED, "miou": next(measured)})
    assert train(tmp_path, "--steps", "1") == 0
    assert metrics(tmp_path)["judged_on"] == {"images": 7, "window": None}
    options = ["--steps", "3", "--eval-every", "2", "--resume", "always", *change]
    assert train(tmp_path, *options) == 0
    report = metrics(tmp_path)
    assert report["last"] == {"step": 3, "miou": 0.4}
    assert (report["step"], report["miou"]) == ((2, 0.5) if change else (1, 0.9))


UNMEASURED = {"pixel_accuracy": None, "mean_accuracy": None}


def test_validation_without_labels_is_refused(
    tmp_path: Path, picture_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mask in (picture_root / "masks" / "val").iterdir():
        Image.new("L", (56, 40), 255).save(mask)
    folder = ["--dataset", "folder", "--data", str(picture_root), "--steps", "2"]
    assert "no labelled pixel" in refuse(capsys, tmp_path / "run", *folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_starting_over_on_unreadable_data_deletes_nothing(
    split: str, tmp_path: Path, picture_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--steps", "2") == 0
    for image in (picture_root / "images" / split).iterdir():
        image.write_bytes(b"no picture")
    folder = ["--dataset", "folder", "--data", str(picture_root), "--steps", "2"]
    assert f"images/{split}/p" in refuse(capsys, tmp_path / "run", *folder, "--resume", "never")
    assert RunFolder(tmp_path / "run").read_record().step == 2
    assert metrics(tmp_path / "run")["step"] == 2
    assert len(load_model(tmp_path / "run" / "best").config.classes) > 3


CHANGES = [["--width", "32"], ["--dropout", "0.1"], ["--decoder", "linear"], ["--batch", "4"]]


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_keeps_its_network_and_its_batch(
    change: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--steps", "2") == 0
    for resume in ("auto", "always"):
        error = refuse(capsys, tmp_path, "--steps", "4", *change, "--resume", resume)
        assert f"{change[0][2:]} " in error
        assert f"there, {change[1]} here" in error
        assert f"give {change[0]} as there" in error
        assert "--resume always" not in error
        assert "--resume never" in error
    assert RunFolder(tmp_path).read_record().step == 2
    assert train(tmp_path, "--steps", "4", *change, "--resume", "never") == 0


def test_other_classes_are_refused(tmp_path: Path, picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--steps", "2") == 0
    folder = ["--dataset", "folder", "--data", str(picture_root), "--steps", "2"]
    assert "other classes" in refuse(capsys, tmp_path / "run", *folder, "--resume", "always")


WRONG = {
    "--lr": ("-1.0", "inf", "nan"),
    "--backbone-lr": ("-0.001", "inf", "nan"),
    "--power": ("-1.0", "inf", "nan"),
    "--momentum": ("1.5", "1.0", "nan"),
    "--clip-grad": ("-1.0", "nan"),
    "--freeze-for": ("-3.0", "1.5", "nan"),
    "--freeze-encoder-blocks": ("-4",),
    "--save-every-seconds": ("-5.0", "nan"),
    "--long-ratio": ("inf", "0.0"),
    "--epochs": ("1e+308",),
    "--seed": (str(2**64),),
    "--threads": ("1000000",),
    "--limit": ("-1",),
}


def test_impossible_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, named in (
        (["--dataset", "folder"], "--data"),
        (["--dataset", "streets"], "'streets'"),
        (["--variant", "Seg-Ti/16"], "drop them, or --variant"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--amp", "fp16"], "fp16"),
        (["--loss-stride", "3"], "patch size 8"),
        (["--batch", "0"], "--batch 0"),
        (["--steps", "0"], "--steps 0"),
        (["--epochs", "-1"], "--epochs -1"),
        (["--epochs", "nan"], "--epochs nan"),
        (["--epochs", "inf"], "--epochs inf"),
        (["--max-minutes", "0"], "--max-minutes 0"),
        (["--heads", "0"], "--heads 0"),
        (["--width", "-128"], "--width -128"),
        (["--depth", "0"], "--depth 0"),
        (["--decoder-depth", "-1"], "--decoder-depth -1"),
        (["--patch-size", "0"], "--patch-size 0"),
        (["--weight-decay", "-1"], "--weight-decay -1"),
        (["--workers", "-1"], "--workers -1"),
        (["--threads", "-1"], "--threads -1"),
        (["--seed", "-1"], "--seed -1"),
        (["--log-every", "0"], "--log-every 0"),
        (["--eval-every", "-1"], "--eval-every -1"),
        (["--eval-window", "4"], "window 4"),
        (["--steps", "5", "--warmup", "9"], "warm-up of 9"),
        (["--dropout", "1"], "--dropout 1"),
        (["--crop", "0", "9"], "--crop 0 9"),
        (["--optimizer", "sgd", "--lr", "1e-6", "--steps", "2"], "minimum"),
        (["--lr", "1e30", "--steps", "30"], "came apart at step"),
        *(([option, value], f"{option} {value}: wanted") for option, values in WRONG.items() for value in values),
        (["--scale", "0.5", "inf"], "--scale (0.5, inf)"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
    ):
        assert named in refuse(capsys, tmp_path / "never", *options), options


def test_weights_that_came_apart_are_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "came apart" in refuse(capsys, tmp_path, "--lr", "1e30", "--steps", "30", "--save-every-seconds", "0")
    if RunFolder(tmp_path).holds_run:
        weights = load_file(tmp_path / "last" / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


SMALL = [*TINY[9:], "--batch", "1"]  # without the shape of a network, which --init brings


@pytest.mark.parametrize("source", ["same classes", "anonymous classes", "renamed classes", "other classes"])
def test_init(
    source: str, tmp_path: Path, picture_root: Path, tiny_model: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    if source == "anonymous classes":
        tiny_model.config = replace(tiny_model.config, classes=("class 0", "class 1", "class 2"))
    elif source == "renamed classes":
        tiny_model.config = replace(tiny_model.config, classes=("ground", "sky", "wall"))
    save_model(tiny_model, tmp_path / "start")
    data = [] if source == "other classes" else ["--dataset", "folder", "--data", str(picture_root)]
    options = [*SMALL, *data, "--init", str(tmp_path / "start"), "--out", str(tmp_path / "run"), "--steps", "2"]
    options += ["--freeze-encoder-blocks", "9", "--drop-path", "0"]
    assert run_here(options) == 0
    trained = load_model(tmp_path / "run" / "last")
    start = tiny_model.state_dict()
    for name, tensor in trained.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, start[name]), name
    assert trained.config.encoder.drop_path == 0
    said = capsys.readouterr().err
    fresh = (trained.state_dict()["decoder.proj_dec.weight"] - start["decoder.proj_dec.weight"]).abs().max() > 0.01
    if source in ("same classes", "anonymous classes"):
        assert trained.config.palette[1:] != tiny_model.config.palette[1:]  # the dataset's
        assert trained.config.classes == ("ground", "wall", "sky")
        assert not fresh  # trained from the checkpoint's
        assert "fresh decoder" not in said
    else:
        assert fresh
        there = "class 1 is 'sky' there, 'wall' here" if source == "renamed classes" else "3 classes there, 8 here"
        assert f"fresh decoder ({there})" in said


def test_a_checkpoint_trained_on_other_crops_is_one_for_images_of_those(
    tmp_path: Path, tiny_model: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_model, tmp_path / "start")
    old, P = tiny_model.config.encoder, tiny_model.config.encoder.patch_size
    side = old.image_size[0] + 3 * P
    options = [*SMALL, "--init", str(tmp_path / "start"), "--out", str(tmp_path / "run"), "--steps", "2"]
    options += ["--crop", str(side), str(side), "--freeze-encoder-blocks", "9"]
    assert run_here(options) == 0
    assert f"for images of {side}x{side}, the crop's, where it was" in capsys.readouterr().err
    trained = load_model(tmp_path / "run" / "last")
    new = trained.config.encoder
    assert new.image_size == (side, side)
    position = resize_position(tiny_model.encoder.pos_embed, old.grid, new.grid, old.extra_tokens, old.position_resize)
    torch.testing.assert_close(trained.encoder.pos_embed, position)
    assert paper_inference("ade20k", "single-scale", trained.config, Inference()).window == side


def test_rates_too_rough_for_a_trained_network_are_warned_of_unless_a_recipe_has_them(
    tmp_path: Path, tiny_model: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_model, tmp_path / "start")
    rest = ["--init", str(tmp_path / "start"), "--steps", "2", "--eval-every", "0"]
    for name, gentle in (("sgd", []), ("clip", ["--clip-grad", "1"]), ("adamw", ["--optimizer", "adamw"])):
        run = [*SMALL, *rest, "--out", str(tmp_path / name), "--optimizer", "sgd", *gentle]
        assert run_here(run) == 0
        assert ("warning: SGD at --lr 0.001 without --clip-grad" in capsys.readouterr().err) is (not gentle)
    recipe = tmp_path / "row.yaml"
    recipe.write_text("row: a\ndataset: shapes\ndecoder: mask\ntrain: {optimizer: sgd}\nstatus: {not_run: no}\n")
    run = [*SMALL, *rest, "--out", str(tmp_path / "row"), "--recipe", str(recipe), "--optimizer", "sgd"]
    assert run_here(run) == 0
    assert "warning" not in capsys.readouterr().err


def test_init_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here([*SMALL, "--out", str(tmp_path / "run"), "--steps", "2", "--init", str(tmp_path / "none")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


def test_variant_and_evaluation_on_the_way(tmp_path: Path) -> None:
    options = ["--variant", "Seg-Ti-Mask/16", "--crop", "32", "48", "--limit", "2", "--batch", "1", "--steps", "5"]
    options += ["--workers", "0", "--device", "cpu", "--threads", "1", "--eval-window", "64"]
    assert run_here([*options, "--out", str(tmp_path)]) == 0
    config = load_model(tmp_path / "best").config
    assert config.name == "Seg-Ti-Mask/16"
    assert config.encoder.image_size == (32, 48)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "miou" in record] == [1, 2, 3, 4, 5]
    assert metrics(tmp_path)["miou"] == max(record["miou"] for record in records if "miou" in record)
    assert any((tmp_path / "tensorboard").iterdir())
