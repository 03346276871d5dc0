"""The training command: it learns, resumes to the bit, survives kills and full disks, and says what is wrong."""

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segmenter import load_model
from segmenter.checkpoint import save_model
from segmenter.errors import CheckpointError
from segmenter.model import Segmenter
from segmenter.train import main
from segmenter.training.log import TrainingLog
from segmenter.training.loop import Trainer
from segmenter.training.state import RunFolder

TINY = [
    *("--width", "16", "--depth", "2", "--heads", "1", "--crop", "32", "32", "--batch", "2", "--limit", "7"),
    *("--dropout", "0.2", "--drop-path", "0.2", "--workers", "0", "--threads", "1", "--device", "cpu", "--amp", "off"),
    *("--optimizer", "adamw", "--log-every", "1", "--eval-every", "0", "--no-tensorboard"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(out: Path, *more: str) -> int:
    return main([*TINY, "--out", str(out), *more])


def losses(out: Path) -> dict[int, float]:
    """Loss by update; an update recorded twice fails."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    pairs = [(record["step"], record["loss"]) for record in records if "loss" in record]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def metrics(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return loaded


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = load_file(first / "last" / "model.safetensors"), load_file(second / "last" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the run die, saving nothing, once the state of an update is written."""
    save = RunFolder.save

    def save_and_die(self: RunFolder, model: Any, optimizer: Any, record: Any) -> None:
        save(self, model, optimizer, record)
        if record.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", save_and_die)


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


RECIPES = {
    "adamw": ["--steps", "12", "--clip-grad", "1", "--weight-decay", "0.1", "--warmup", "3"],
    "sgd, frozen at first": [
        "--steps",
        "12",
        "--optimizer",
        "sgd",
        "--freeze-encoder-blocks",
        "1",
        "--freeze-for",
        "0.6",
    ],
    "weighted, sparse loss": ["--epochs", "3.5", "--class-weights", "--loss-stride", "2", "--backbone-lr", "1e-4"],
    "bf16": ["--steps", "12", "--amp", "bf16"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[name]
    assert train(tmp_path / "whole", *recipe) == 0
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        assert train(tmp_path / "parts", *recipe, "--save-every-seconds", "0") == 130
    assert list(losses(tmp_path / "parts")) == [1, 2, 3, 4, 5]
    # other workers, and the log cut short in the middle of a line
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    assert train(tmp_path / "parts", *recipe, "--workers", "1") == 0
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert list(parts) == list(range(1, 13))
    assert max(abs(whole[step] - parts[step]) for step in whole) <= 1e-6
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert metrics(tmp_path / "whole")["miou"] == metrics(tmp_path / "parts")["miou"]


def test_evaluation_on_the_way_changes_nothing(tmp_path: Path) -> None:
    frozen = ["--steps", "8", "--freeze-encoder-blocks", "1", "--limit", "3"]
    assert train(tmp_path / "with", *frozen, "--eval-every", "2") == 0
    assert train(tmp_path / "without", *frozen) == 0
    assert_same_weights(tmp_path / "with", tmp_path / "without")


def test_weights_and_optimiser_state_are_of_one_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(4, monkeypatch)
    train(tmp_path, "--steps", "12", "--save-every-seconds", "0")
    steps = {
        int(value)
        for key, value in load_file(tmp_path / "last/optimizer.safetensors").items()
        if key.startswith("step/")
    }
    assert steps == {4}


def evaluations(out: Path) -> list[int]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "miou" in record]


@pytest.mark.parametrize("every", [["--eval-every", "2"], []], ids=["by updates", "by share"])
@pytest.mark.parametrize("stop", ["kill before", "kill after", "signal"])
def test_a_stop_loses_no_evaluation(
    every: list[str], stop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY[: TINY.index("--eval-every")], *every, "--no-tensorboard", "--steps", "10", "--out", str(tmp_path)]
    evaluate, update = Trainer.evaluate, Trainer._update

    def killed(self: Trainer, *arguments: Any) -> dict[str, Any]:
        if self.step == 4 and stop == "kill before":
            raise KeyboardInterrupt
        result = evaluate(self, *arguments)
        if self.step == 4 and stop == "kill after":
            raise KeyboardInterrupt
        return result

    def signalled(self: Trainer, *arguments: Any) -> torch.Tensor:
        if self.step == 3 and stop == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", killed)
        patch.setattr(Trainer, "_update", signalled)
        assert main(options) in (130, 128 + signal.SIGTERM)
    assert RunFolder(tmp_path).read_record().step == 4
    assert main(options) == 0
    assert evaluations(tmp_path) == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Trainer._update

    def signalled(self: Trainer, *arguments: Any) -> torch.Tensor:
        if self.step == 3:
            os.kill(os.getpid(), number)
        return update(self, *arguments)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", signalled)
        assert train(tmp_path, "--steps", "8") == 128 + number
    assert signal.getsignal(number) is before
    assert RunFolder(tmp_path).read_record().step == 4
    assert train(tmp_path, "--steps", "8") == 0
    assert list(losses(tmp_path)) == list(range(1, 9))


def test_signal_during_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the evaluation should have ended here")

    with monkeypatch.context() as patch:
        patch.setattr("segmenter.training.run.evaluate_labels", signalled)
        assert train(tmp_path, "--steps", "4") == 128 + signal.SIGTERM
    assert not (tmp_path / "metrics.json").exists()
    assert train(tmp_path, "--steps", "4") == 0
    assert metrics(tmp_path)["step"] == 4


def test_command_stops_at_sigterm_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segmenter.train", *TINY, "--out", str(tmp_path), "--max-minutes", "0.05"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--workers", "1"], env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "metrics.jsonl").is_file():
        time.sleep(0.05)
    time.sleep(0.5)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "the same command goes on" in said
    record = RunFolder(tmp_path).read_record()
    assert 0 < record.elapsed_s < 3
    # the budget counts what was spent before
    assert main(command[3:]) == 0
    assert 3 <= metrics(tmp_path)["training_s"] < 6


def _child(argv: list[str]) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(main(argv))


def kill_at_random(out: Path, kills: int) -> None:
    """Train with a state after every update, kill it again and again, and compare with a run left alone."""
    # a server that has imported all is forked for every child, so that a kill comes within training and not before it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segmenter.train", "tests.test_train"])
    options = ["--steps", str(25 * kills), "--save-every-seconds", "0", "--eval-every", "20"]
    choose = random.Random(kills)
    done, killed = 0, 0
    while killed < kills:
        child = context.Process(target=_child, args=([*TINY, "--out", str(out / "killed"), *options],))
        child.start()
        began = time.monotonic()
        while child.is_alive() and not _step(out / "killed") > done and time.monotonic() - began < 60:
            time.sleep(0.005)
        time.sleep(choose.uniform(0, 0.3))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the run ended before it was killed; give it more updates"
        killed += 1
        now = _step(out / "killed")
        assert now > done
        done = now
        load_model(out / "killed" / "last")
    child = context.Process(target=_child, args=([*TINY, "--out", str(out / "killed"), *options],))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert train(out / "whole", *options, "--save-every-seconds", "60") == 0
    assert losses(out / "killed") == losses(out / "whole")
    assert_same_weights(out / "killed", out / "whole")
    assert sorted(path.name for path in (out / "killed/states").iterdir() if not path.name.startswith("best")) == [
        f"step-{25 * kills - 1:08d}",
        f"step-{25 * kills:08d}",
    ]


def _step(out: Path) -> int:
    folder = RunFolder(out)
    return folder.read_record().step if folder.holds_run else 0


def test_kill_minus_nine(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 3)


@pytest.mark.slow
def test_kill_minus_nine_twenty_times(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 20)


def test_a_worker_that_dies_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = Trainer._update

    def kill_a_worker(self: Trainer, *arguments: Any) -> torch.Tensor:
        if self.step == 2:
            for child in multiprocessing.active_children():
                child.kill()
        return update(self, *arguments)

    options = ["--workers", "1", "--steps", "400", "--save-every-seconds", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", kill_a_worker)
        assert "a process that loads images died" in refuse(capsys, tmp_path, *options)
    assert RunFolder(tmp_path).read_record().step >= 2


def test_full_disk_while_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(3, monkeypatch)
    train(tmp_path, "--steps", "6", "--save-every-seconds", "0")
    monkeypatch.undo()
    capsys.readouterr()
    with monkeypatch.context() as patch:

        def full(tensors: object, path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        patch.setattr("segmenter.training.state.write_tensors", full)
        assert train(tmp_path, "--steps", "6", "--save-every-seconds", "0") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: {tmp_path / 'states' / 'step-00000004'}: cannot be saved (No space left on device)"
    )
    assert "make room" in error
    assert RunFolder(tmp_path).read_record().step == 3
    load_model(tmp_path / "last")
    assert train(tmp_path, "--steps", "6") == 0
    assert list(losses(tmp_path)) == list(range(1, 7))


def test_full_disk_while_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrainingLog(tmp_path, 0, tensorboard=False) as log:
        log.file.close()
        log.file = Path("/dev/full").open("w")  # noqa: SIM115  (the log closes it)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(No space left"):
            log.record({"step": 1, "loss": 1.0})


def refuse(capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> str:
    capsys.readouterr()
    assert train(out, *more) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


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


@pytest.mark.parametrize("change", [["--width", "32"], ["--dropout", "0.1"], ["--decoder", "linear"]])
def test_a_run_keeps_its_network(change: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--steps", "2") == 0
    for resume in ("auto", "always"):
        error = refuse(capsys, tmp_path, "--steps", "4", *change, "--resume", resume)
        assert f"{change[0][2:]} " in error
        assert f"there, {change[1]} here" in error
        assert "--resume always" not in error
        assert "--resume never" in error
    assert RunFolder(tmp_path).read_record().step == 2
    assert train(tmp_path, "--steps", "4", *change, "--resume", "never") == 0


def test_other_classes_are_refused(tmp_path: Path, picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--steps", "2") == 0
    folder = ["--dataset", "folder", "--data", str(picture_root), "--steps", "2"]
    assert "other classes" in refuse(capsys, tmp_path / "run", *folder, "--resume", "always")


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
    assert main(options) == 0
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


def test_rates_too_rough_for_a_trained_network_are_warned_of(
    tmp_path: Path, tiny_model: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_model, tmp_path / "start")
    rest = ["--init", str(tmp_path / "start"), "--steps", "2", "--eval-every", "0"]
    for name, gentle in (("sgd", []), ("clip", ["--clip-grad", "1"]), ("adamw", ["--optimizer", "adamw"])):
        run = [*SMALL, *rest, "--out", str(tmp_path / name), "--optimizer", "sgd", *gentle]
        assert main(run) == 0
        assert ("warning: SGD at --lr 0.001 without --clip-grad" in capsys.readouterr().err) is (not gentle)


def test_init_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--out", str(tmp_path / "run"), "--steps", "2", "--init", str(tmp_path / "none")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


def test_variant_and_evaluation_on_the_way(tmp_path: Path) -> None:
    options = ["--variant", "Seg-Ti-Mask/16", "--crop", "32", "48", "--limit", "2", "--batch", "1", "--steps", "5"]
    options += ["--workers", "0", "--device", "cpu", "--threads", "1", "--eval-window", "64"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    config = load_model(tmp_path / "best").config
    assert config.name == "Seg-Ti-Mask/16"
    assert config.encoder.image_size == (32, 48)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "miou" in record] == [1, 2, 3, 4, 5]
    assert metrics(tmp_path)["miou"] == max(record["miou"] for record in records if "miou" in record)
    assert any((tmp_path / "tensorboard").iterdir())
