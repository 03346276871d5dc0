"""Boards beside the log, Weights & Biases by a stand-in for its package, and what is left of the time."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from segmenter.training import log as training_log
from segmenter.training.log import TrainingLog
from segmenter.training.options import RecordOptions, TrainOptions
from tests.training.runs import losses, refuse, stop_after, train


class FakeRun:
    def __init__(self, **given: Any) -> None:
        self.given, self.logged, self.finished = given, [], False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of that name which remembers its runs."""
    module: Any = ModuleType("wandb")
    module.runs = []

    def init(**given: Any) -> FakeRun:
        module.runs.append(FakeRun(**given))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_is_given_every_record(tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--steps", "4", "--wandb", "streets", "--save-every-seconds", "0"]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert train(tmp_path, *options) == 130
    assert train(tmp_path, *options) == 0
    first, second = wandb.runs
    assert first.given["project"] == "streets"
    assert first.given["config"]["width"] == 16
    assert first.given["dir"] == str(tmp_path)
    # one run there, however often it is resumed here
    assert first.given["id"] == second.given["id"] == (tmp_path / "wandb-id").read_text()
    assert second.given["resume"] == "allow"
    assert [step for step, _ in first.logged] == [1, 2]
    assert [step for step, _ in second.logged] == [3, 4, 4]
    assert {step: values["loss"] for step, values in (*first.logged, *second.logged) if "loss" in values} == losses(
        tmp_path
    )
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert second.logged[-1][1]["miou"] == records[-1]["miou"]
    assert first.finished
    assert second.finished


def test_a_run_that_starts_over_is_another_one_there(tmp_path: Path, wandb: Any) -> None:
    options = ["--steps", "1", "--wandb", "streets", "--resume", "never"]
    assert train(tmp_path, *options) == 0
    assert train(tmp_path, *options) == 0
    first, second = wandb.runs
    assert first.given["id"] != second.given["id"]


def test_weights_and_biases_that_refuses(
    tmp_path: Path, wandb: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> FakeRun:
        raise ConnectionError("api.wandb.ai:\n no route to host")

    monkeypatch.setattr(wandb, "init", init)
    error = refuse(capsys, tmp_path, "--steps", "2", "--wandb", "streets")
    assert error == (
        "error: --wandb streets: api.wandb.ai: no route to host; run `wandb login`, or set WANDB_MODE=offline"
    )


def test_weights_and_biases_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path, "--steps", "1") == 0
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = refuse(capsys, tmp_path, "--steps", "2", "--resume", "never", "--wandb", "streets")
    assert error == "error: wandb is not installed; run: pip install 'segmenter-trt[wandb]'"
    assert list(losses(tmp_path)) == [1]  # nothing deleted


def test_a_missing_tensorboard_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmenter.training.boards.find_spec", lambda name: None)
    assert train(tmp_path, "--steps", "1", "--tensorboard") == 0
    assert "TensorBoard is not installed (pip install tensorboard)" in capsys.readouterr().err


def test_what_is_left_of_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainOptions(out=tmp_path)
    monkeypatch.setattr(training_log, "_LINE_SECONDS", 0.0)
    with TrainingLog(replace(options, record=RecordOptions(tensorboard=False)), 0) as log:
        for progress, elapsed_s, left in ((0.0, 1.0, "?"), (0.25, 60.0, "3:00"), (0.01, 60.0, "1:39:00")):
            log.update(5, progress, elapsed_s, 1.0, 1e-3, 20.0)
            assert capsys.readouterr().err.splitlines()[-1].endswith(f"{left} left")
