"""A file that vanishes or breaks while a run reads it: named, and nothing that was learnt before is lost."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from segmenter.checkpoint import load_model, read_tensors
from segmenter.train import main as train
from segmenter.training.data import Order
from tests.training.ranks import run_ranks

STEPS = 6


def run(root: Path, out: Path, *more: str) -> int:
    return train([*options_of(root, out), *more])


def options_of(root: Path, out: Path) -> list[str]:
    """Three training images, one an update: each is read in every epoch of three, and p1 last in the second.

    States are written at the ends of epochs, after updates 3 and 6.
    """
    options = "--width 32 --depth 1 --patch-size 8 --crop 32 32 --batch 1 --lr 0.01 --no-tensorboard --log-every 1"
    quiet = f"--threads 1 --eval-every 0 --save-every-seconds 1000 --steps {STEPS} --seed 1"
    return ["--dataset", "folder", "--data", str(root), "--out", str(out), *options.split(), *quiet.split()]


def steps(out: Path) -> list[int]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["step"] for record in map(json.loads, lines) if "loss" in record]


class Vanishing:
    """Moves a file away, or cuts it short, once its dataset has been read a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, after: int, cut: bool = False) -> None:
        from segmenter.datasets.pairs import PairedDataset

        read, self.path, self.bytes = PairedDataset.__getitem__, path, path.read_bytes()
        reads = 0

        def reading(dataset: PairedDataset, index: int) -> object:
            nonlocal reads
            reads += dataset.layout.images.name == "train"
            if reads == after:
                self.path.write_bytes(self.bytes[:100]) if cut else self.path.unlink(missing_ok=True)
            return read(dataset, index)

        monkeypatch.setattr(PairedDataset, "__getitem__", reading)

    def bring_back(self) -> None:
        self.path.write_bytes(self.bytes)


@pytest.mark.parametrize("cut", [False, True], ids=["vanished", "corrupt"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_run_stops_saves_and_goes_on_to_the_same_network(
    kind: str,
    cut: bool,
    picture_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(picture_root, tmp_path / "whole", "--workers", "0") == 0
    with monkeypatch.context() as patch:
        vanishing = Vanishing(patch, picture_root / kind / "train" / "p1.png", 4, cut)
        out = tmp_path / "run"
        capsys.readouterr()
        assert run(picture_root, out, "--workers", "0") == 2
        said = capsys.readouterr().err
        assert f"{kind}/train/p1.png: " in said
        assert said.strip().splitlines()[-1].startswith("error:")
    assert steps(out) == [1, 2, 3, 4, 5]
    assert json.loads((out / "last" / "training.json").read_text())["step"] == 5
    # still so: again one line, and the state is as it was
    assert run(picture_root, out, "--workers", "0") == 2
    assert json.loads((out / "last" / "training.json").read_text())["step"] == 5
    vanishing.bring_back()
    assert run(picture_root, out, "--workers", "0") == 0
    assert steps(out) == list(range(1, STEPS + 1))
    whole, resumed = (read_tensors(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "run"))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_processes_that_read_ahead_lose_no_update(
    picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture_root / "masks" / "train" / "p2.png").write_bytes(b"no picture")
    (step,) = [step for step, ((_, index),) in enumerate(Order(3, 1, seed=1, first=0, steps=3)) if index == 2]
    assert step > 0
    out = tmp_path / "run"
    assert run(picture_root, out, "--workers", "2") == 2
    assert "masks/train/p2.png: not a PNG file" in capsys.readouterr().err
    assert json.loads((out / "last" / "training.json").read_text())["step"] == step


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_that_skips_names_the_file_and_reaches_its_end(
    workers: str, picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture_root / "masks" / "train" / "p1.png").write_bytes(b"no picture")
    Image.new("RGBA", (56, 40)).save(picture_root / "images" / "train" / "p2.png")
    out = tmp_path / "run"
    assert run(picture_root, out, "--workers", workers, "--on-bad-sample", "skip") == 0
    said = "".join(capsys.readouterr().err.split())
    for name in ("masks/train/p1.png", "images/train/p2.png"):
        assert said.count(f"{name}:") == 1
    assert steps(out) == list(range(1, STEPS + 1))
    assert load_model(out / "last").config.num_classes == 3


def test_a_validation_image_that_breaks_loses_no_update(
    picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture_root / "images" / "val" / "p1.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    assert run(picture_root, out, "--workers", "0", "--eval-every", "2") == 2
    assert "images/val/p1.png: not a JPEG or PNG file" in capsys.readouterr().err
    assert json.loads((out / "last" / "training.json").read_text())["step"] == 2


@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_a_file_that_the_second_of_two_processes_reads(choice: str, picture_root: Path, tmp_path: Path) -> None:
    for kind, number in product(("images", "masks"), range(3, 8)):
        folder = picture_root / kind / "train"
        shutil.copy(folder / "p1.png", folder / f"p{number}.png")
    (_, _, (_, (_, bad))) = Order(8, 2, seed=3, first=0, steps=3)  # the second half of the third update
    name = f"masks/train/p{bad}.png"
    (picture_root / name).write_bytes(b"no picture")
    out = tmp_path / "run"
    options = [*options_of(picture_root, out), "--batch", "2", "--seed", "3", "--workers", "0"]
    statuses = run_ranks(2, [*options, "--on-bad-sample", choice], tmp_path / "said")
    said = "".join((tmp_path / "said" / "1").read_text().split())
    assert f"{name}:notaPNGfile" in said
    if choice == "skip":
        assert statuses == [0, 0]
        assert steps(out) == list(range(1, STEPS + 1))
    else:
        assert 0 not in statuses
        assert json.loads((out / "last" / "training.json").read_text())["step"] == 2


def test_classes_are_weighted_by_the_files_that_can_be_read(
    picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = picture_root / "masks" / "train" / "p1.png"
    mask.write_bytes(b"no picture")
    options = ["--workers", "0", "--class-weights"]
    assert run(picture_root, tmp_path / "run", *options, "--on-bad-sample", "skip") == 0
    assert run(picture_root, tmp_path / "other", *options) == 2
    assert "masks/train/p1.png" in capsys.readouterr().err
    for path in (mask, picture_root / "images" / "train" / "p1.png"):
        path.unlink()
    assert run(picture_root, tmp_path / "fewer", *options) == 0
    weights, wanted = (
        json.loads((tmp_path / name / "last" / "training.json").read_text())["class_weights"]
        for name in ("run", "fewer")
    )
    assert weights == wanted
