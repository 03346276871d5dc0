"""What goes wrong while training, full disks, dead workers, a loss that is no number, is named, and nothing is lost."""

import errno
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from segmenter import load_model
from segmenter.datasets.shapes import Shapes
from segmenter.errors import CheckpointError, DataError, SegmenterError
from segmenter.ranks import LostRank
from segmenter.training.learner import Learner, NotFiniteError
from segmenter.training.log import TrainingLog
from segmenter.training.loop import Trainer
from segmenter.training.options import RecordOptions, TrainOptions
from segmenter.training.run import _explaining
from segmenter.training.state import RunFolder
from tests.training.runs import losses, metrics, refuse, stop_after, train


def test_a_worker_that_dies_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = Learner.update

    def kill_a_worker(self: Learner, parts: Any, step: int, lr: float) -> torch.Tensor:
        if step == 2:
            for child in multiprocessing.active_children():
                child.kill()
        return update(self, parts, step, lr)

    options = ["--workers", "1", "--steps", "400", "--save-every-seconds", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", kill_a_worker)
        assert "a process that loads images died" in refuse(capsys, tmp_path, *options)
    assert RunFolder(tmp_path).read_record().step >= 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("Unable to allocate 1 GiB"), "images died (MemoryError: Unable to allocate 1 GiB), mostly"),
        (RuntimeError("unable to share"), "images died (RuntimeError: unable to share)"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files; lower --workers, or allow more by"),
    ],
)
def test_what_a_worker_has_too_little_of_is_named(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Shapes, "__getitem__", short)
        assert told in refuse(capsys, tmp_path, "--workers", "1", "--steps", "4")
    assert train(tmp_path, "--workers", "0", "--accumulate", "2", "--steps", "4") == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nSee the documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("at", ["make_network", "Trainer.train"])
def test_too_little_memory_is_one_line(
    at: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"segmenter.training.run.{at}", short)
    assert "too little memory (" in (said := refuse(capsys, tmp_path, "--steps", "2"))
    assert "--accumulate 2" in said


def test_a_full_disk_is_no_option_that_pytorch_lacks() -> None:
    with pytest.raises(OSError, match="No space left"), _explaining():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/deterministic/log.jsonl")


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
    options = TrainOptions(out=tmp_path, record=RecordOptions(tensorboard=False))
    with TrainingLog(options, 0) as log:
        log.file.close()
        log.file = Path("/dev/full").open("w")  # noqa: SIM115  (the log closes it)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(No space left"):
            log.record({"step": 1, "loss": 1.0})


def spoil(step: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have the loss of an update be no number; the batches it was given."""
    given: list[Any] = []
    backward = Learner._backward

    def spoiled(self: Learner, images: torch.Tensor, labels: torch.Tensor, count: Any, at: int, *rest: Any) -> Any:
        loss = backward(self, images, labels, count, at, *rest)
        if at == step:
            given.append((images, labels))
            return loss * torch.nan
        return loss

    monkeypatch.setattr(Learner, "_backward", spoiled)
    return given


def test_a_loss_that_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "8", "--save-every-seconds", "0", "--ema", "0.9", "--workers", "1"]
    with monkeypatch.context() as patch:
        given = spoil(5, patch)
        error = refuse(capsys, tmp_path, *options)
    ((images, labels),) = given
    file = tmp_path / "bad-batch-00000005.safetensors"
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["batch"])
    assert facts["step"] == 5
    assert facts["seed"] == 0
    sources = [sample["source"] for sample in facts["samples"]]
    assert "came apart at step 6" in error
    assert ", ".join(sources) in error
    assert str(file) in error
    assert f"{tmp_path / 'last'} (step 5) is good" in error
    saved = load_file(file)
    assert torch.equal(saved["images"], images)
    assert torch.equal(saved["labels"], labels)
    # the state is the one before, and two ways lead on: it was chance, or other rates
    assert RunFolder(tmp_path).read_record().step == 5
    assert train(tmp_path, *options, "--clip-grad", "1", "--resume", "always") == 0
    assert list(losses(tmp_path)) == list(range(1, 9))
    assert metrics(tmp_path)["last"]["step"] == 8


def test_a_bad_batch_that_cannot_be_kept_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    spoil(1, monkeypatch)
    monkeypatch.setattr("segmenter.training.bad_batch.write_tensors", full)
    error = refuse(capsys, tmp_path, "--steps", "8")
    assert "came apart at step 2" in error
    assert "with shapes/train/" in error
    assert "not saved: " in error
    assert "no state was saved yet" in error


@pytest.mark.parametrize("trouble", [DataError("mask.png: gone"), LostRank("rank 1 of 2 ended")])
def test_a_broken_weight_behind_other_trouble_is_one_line(
    trouble: SegmenterError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Trainer, *_: Any) -> None:
        with torch.no_grad():
            next(self.learner.model.parameters()).fill_(torch.nan)
        self.step = 1
        raise trouble

    monkeypatch.setattr(Trainer, "_updates", broken)
    error = refuse(capsys, tmp_path, "--steps", "3")
    assert ("came apart at step 1" if isinstance(trouble, DataError) else "rank 1 of 2 ended") in error
    assert not (tmp_path / "last").exists()


def test_on_a_gpu_the_first_bad_update_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learners = []
    update = Learner.update

    def remember(self: Learner, *arguments: Any) -> torch.Tensor:
        learners.append(self)
        return update(self, *arguments)

    monkeypatch.setattr(Learner, "update", remember)
    assert train(tmp_path, "--steps", "1") == 0
    learner = learners[0]
    learner.require_finite()
    learner.device = torch.device("cuda")  # where a loss is not read at once
    for step, loss in ((3, 1.0), (4, torch.inf), (5, 1.0), (6, torch.nan)):
        learner._watch(torch.tensor(loss), step)
    with pytest.raises(NotFiniteError) as error:
        learner.require_finite()
    assert error.value.step == 4
