"""`segmenter bench-train-step`: training does what a bare loop does, and hardly more."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from segmenter.training.learner import Learner
from segmenter_bench.train_step import main

SMALL = ["--crop", "128", "128", "--batch", "2", "--updates", "3"]


@pytest.mark.slow
def test_training_costs_hardly_more_than_a_bare_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    # the 5 % it is meant to keep to, and as much again for what busy neighbours do to a cache
    assert main([*SMALL, "--rounds", "7", "--json", str(path), "--most", "1.10"]) == 0
    record = json.loads(path.read_text())
    assert len(record["cpu_s"]) == 7
    assert f"{record['ratio']:.3f} times" in capsys.readouterr().out


def test_slow_training_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    update = Learner.update

    def twice(self: Learner, parts: Any, step: int, lr: float) -> torch.Tensor:
        for images, _ in parts:
            self.model.masks(images).sum().backward()
            self.optimizer.zero_grad()
        return update(self, parts, step, lr)

    monkeypatch.setattr(Learner, "update", twice)
    assert main([*SMALL, "--rounds", "1", "--most", "1.10"]) == 2
    assert "wanted at most 1.1" in capsys.readouterr().err


def test_other_weights_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    update = Learner.update
    monkeypatch.setattr(Learner, "update", lambda self, parts, step, lr: update(self, parts, step, 2 * lr))
    assert main([*SMALL, "--rounds", "1"]) == 2
    assert "other weights after 3 updates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--most", "nan"], "--most nan: wanted a number above 0"),
        (["--most", "inf"], "--most inf: wanted a number above 0"),
        (["--most", "0"], "--most 0.0: wanted a number above 0"),
        (["--crop", "0", "128"], "--crop 0 128: wanted at least 1 pixel"),
    ],
)
def test_options_that_judge_nothing_are_refused(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--rounds", "1", *options]) == 2
    assert complaint in capsys.readouterr().err
