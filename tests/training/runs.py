"""Tiny runs of the training command, and what they leave behind."""

import json
import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segmenter.train import main
from segmenter.training.state import RunFolder

TINY = [
    *("--width", "16", "--depth", "2", "--heads", "1", "--crop", "32", "32", "--batch", "2", "--limit", "7"),
    *("--dropout", "0.2", "--drop-path", "0.2", "--workers", "0", "--threads", "1", "--device", "cpu", "--amp", "off"),
    *("--optimizer", "adamw", "--log-every", "1", "--eval-every", "0", "--no-tensorboard"),
]


def run_here(arguments: list[str]) -> int:
    """The command in this process, whose threads then are as many as they were."""
    threads = torch.get_num_threads()
    try:
        return main(arguments)
    finally:
        torch.set_num_threads(threads)


def train(out: Path, *more: str) -> int:
    return run_here([*TINY, "--out", str(out), *more])


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
    names = sorted(path.name for path in (first / "last").glob("*.safetensors"))
    assert names == sorted(path.name for path in (second / "last").glob("*.safetensors"))
    for name in names:
        ours, theirs = load_file(first / "last" / name), load_file(second / "last" / name)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), (name, key)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the run die, saving nothing, once the state of an update is written."""
    save = RunFolder.save

    def save_and_die(self: RunFolder, model: Any, optimizer: Any, record: Any, learning: Any) -> None:
        save(self, model, optimizer, record, learning)
        if record.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", save_and_die)


def refuse(capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> str:
    capsys.readouterr()
    assert train(out, *more) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


def start(
    arguments: list[str], said: Path | None = None, module: str = "segmenter.train", **environment: str
) -> ForkServerProcess:
    """A command in a process of its own, forked from one that has imported all: it works within a second.

    said: where its stdout and stderr go.
    """
    context = multiprocessing.get_context("forkserver")
    # the first optimiser of a process imports torch._dynamo, which takes longer than all else
    context.set_forkserver_preload(["segmenter.training.run", "tests.training.runs", "torch._dynamo"])
    process = context.Process(target=_child, args=(module, arguments, said, environment))
    process.start()
    return process


def _child(module: str, arguments: list[str], said: Path | None, environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull if said is None else said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.exit(import_module(module).main(arguments))
