"""A training run that is stopped or killed goes on as if it never had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segmenter import load_model
from segmenter.ranks import Ranks
from segmenter.training import loop, run
from segmenter.training.learner import Learner
from segmenter.training.loop import Trainer
from segmenter.training.state import RunFolder
from tests.training.runs import TINY, assert_same_weights, losses, metrics, run_here, start, stop_after, train

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
    "average, layer by layer, in parts": [
        *("--steps", "12", "--ema", "0.9", "--layer-decay", "0.7", "--accumulate", "2", "--clip-grad", "1"),
    ],
    "deterministic": ["--steps", "12", "--deterministic"],
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
    evaluate, update = Trainer.evaluate, Learner.update

    def killed(self: Trainer, *arguments: Any) -> dict[str, Any]:
        if self.step == 4 and stop == "kill before":
            raise KeyboardInterrupt
        result = evaluate(self, *arguments)
        if self.step == 4 and stop == "kill after":
            raise KeyboardInterrupt
        return result

    def signalled(self: Learner, parts: Any, step: int, lr: float) -> torch.Tensor:
        if step == 3 and stop == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, parts, step, lr)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", killed)
        patch.setattr(Learner, "update", signalled)
        assert run_here(options) in (130, 128 + signal.SIGTERM)
    assert RunFolder(tmp_path).read_record().step == 4
    assert run_here(options) == 0
    assert evaluations(tmp_path) == [2, 4, 6, 8, 10]


def test_an_evaluation_that_uses_up_the_time_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late, evaluate_labels = 0.0, run.evaluate_labels

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal late
        late += 1000
        return evaluate_labels(*arguments, **options)

    monkeypatch.setattr(run, "evaluate_labels", slow)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))
    assert train(tmp_path, "--max-minutes", "10", "--eval-every", "1") == 0
    assert evaluations(tmp_path) == [1]
    assert metrics(tmp_path)["step"] == 1
    # and once it has ended, so it has at the next start
    before = metrics(tmp_path)
    assert train(tmp_path, "--max-minutes", "10", "--eval-every", "1") == 0
    assert evaluations(tmp_path) == [1]
    assert metrics(tmp_path) == before


@pytest.mark.parametrize("ending", ["signal within it", "kill after it"])
def test_the_time_of_an_evaluation_counts_however_the_run_stops(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, evaluate_labels = 0.0, run.evaluate_labels

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal late
        late += 100
        if ending == "signal within it":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_labels(*arguments, **options)

    def killed(self: Trainer) -> bool:
        if self.step == 3:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(run, "evaluate_labels", slow)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))
    monkeypatch.setattr(Trainer, "_save_due", killed)
    assert train(tmp_path, "--steps", "9", "--eval-every", "2") in (130, 128 + signal.SIGTERM)
    record = RunFolder(tmp_path).read_record()
    assert record.step == 2
    assert record.elapsed_s > 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Learner.update

    def signalled(self: Learner, parts: Any, step: int, lr: float) -> torch.Tensor:
        if step == 3:
            os.kill(os.getpid(), number)
        return update(self, parts, step, lr)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", signalled)
        assert train(tmp_path, "--steps", "8") == 128 + number
    assert signal.getsignal(number) is before
    assert RunFolder(tmp_path).read_record().step == 4
    assert train(tmp_path, "--steps", "8") == 0
    assert list(losses(tmp_path)) == list(range(1, 9))


def test_a_signal_while_processes_agree_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def signalled(self: Ranks, *values: float) -> tuple[float, ...]:
        nonlocal calls
        calls += len(values) == 2 and type(values[1]) is float
        if calls == 4:
            os.kill(os.getpid(), signal.SIGTERM)  # once it has been asked for
        return values

    monkeypatch.setattr(Ranks, "largest", signalled)
    assert train(tmp_path, "--steps", "8") == 128 + signal.SIGTERM
    assert RunFolder(tmp_path).read_record().step < 8


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
    assert run_here(command[3:]) == 0
    assert 3 <= metrics(tmp_path)["training_s"] < 6


def kill_at_random(out: Path, kills: int) -> None:
    """Train with a state after every update, kill it again and again, and compare with a run left alone."""
    options = ["--steps", str(10 * kills), "--save-every-seconds", "0", "--eval-every", "20"]
    choose = random.Random(kills)
    done, killed = 0, 0
    while killed < kills:
        child = start([*TINY, "--out", str(out / "killed"), *options])
        began = time.monotonic()
        while child.is_alive() and not _step(out / "killed") > done and time.monotonic() - began < 60:
            time.sleep(0.005)
        # some updates later, at any moment of one; few enough for all kills to come before the last update
        first, updates = time.monotonic(), choose.randint(1, 5)
        while child.is_alive() and _step(out / "killed") <= done + updates and time.monotonic() - first < 60:
            time.sleep(0.002)
        time.sleep(choose.uniform(0, (time.monotonic() - first) / updates))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the run ended before it was killed; give it more updates"
        killed += 1
        now = _step(out / "killed")
        assert now > done
        done = now
        load_model(out / "killed" / "last")
    child = start([*TINY, "--out", str(out / "killed"), *options])
    child.join()
    assert child.exitcode == 0
    assert train(out / "whole", *options, "--save-every-seconds", "60") == 0
    assert losses(out / "killed") == losses(out / "whole")
    assert_same_weights(out / "killed", out / "whole")
    assert sorted(path.name for path in (out / "killed/states").iterdir() if not path.name.startswith("best")) == [
        f"step-{10 * kills - 1:08d}",
        f"step-{10 * kills:08d}",
    ]


def _step(out: Path) -> int:
    folder = RunFolder(out)
    return folder.read_record().step if folder.holds_run else 0


def test_kill_minus_nine(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 3)


@pytest.mark.slow
def test_kill_minus_nine_fifty_times(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 50)
