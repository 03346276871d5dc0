"""The run folder: whole states or none, what is kept, full disks, damaged files, two processes at once."""

import errno
import json
import multiprocessing
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from segmenter import load_model
from segmenter.errors import CheckpointError
from segmenter.model import Segmenter
from segmenter.training import state
from segmenter.training.optimizer import make_optimizer, optimizer_tensors
from segmenter.training.options import OptimizerOptions
from segmenter.training.state import RunFolder, TrainingRecord


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def optimizer(tiny_model: Segmenter) -> torch.optim.Optimizer:
    optimizer = make_optimizer(tiny_model, OptimizerOptions(optimizer="adamw", lr=0.01))
    tiny_model(torch.ones(1, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    return optimizer


def at(step: int) -> TrainingRecord:
    return TrainingRecord(step, 1.5 * step, {"lr": 0.1}, {"images": 3, "classes": ["a"]})


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.states.iterdir())


@contextmanager
def full_disk_for(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that fills up as a file of that name is written."""
    write = state.write_tensors

    def fail(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
        if path.name == name:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_tensors", fail)
        patch.setattr("segmenter.checkpoint.write_tensors", fail)
        yield


def test_save_and_load(folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer) -> None:
    folder.save(tiny_model, optimizer, at(7))
    other = Segmenter(tiny_model.config)
    its = make_optimizer(other, OptimizerOptions(optimizer="adamw", lr=0.01))
    folder.load(other, its)
    assert folder.read_record() == at(7)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    mine, theirs = optimizer_tensors(optimizer), optimizer_tensors(its)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    assert load_model(folder.last).config == tiny_model.config


def test_last_and_the_one_before_are_kept(
    folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer
) -> None:
    for step in (5, 10, 15, 15):
        folder.save(tiny_model, optimizer, at(step))
    folder.save_best(tiny_model, {"step": 10, "miou": 0.5})
    folder.save_best(tiny_model, {"step": 15, "miou": 0.6})
    assert names(folder) == ["best-00000015", "step-00000010", "step-00000015"]
    assert folder.read_record().step == 15
    assert folder.best_metrics() == {"step": 15, "miou": 0.6}
    folder.save_best(tiny_model, {"step": 15, "miou": 0.7})
    assert folder.best_metrics() == {"step": 15, "miou": 0.7}
    assert load_model(folder.best).config == tiny_model.config


def test_the_run_can_be_moved(folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer) -> None:
    folder.save(tiny_model, optimizer, at(3))
    moved = folder.root.rename(folder.root.with_name("moved"))
    assert RunFolder(moved).read_record().step == 3


@pytest.mark.parametrize("states", ["copied", "gone"])
def test_a_copy_that_followed_links_is_refused_and_what_it_says_mends_it(
    states: str, folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    for step in (5, 10):
        folder.save(tiny_model, optimizer, at(step))
        folder.save_best(tiny_model, {"step": step, "miou": 0.05 * step})
    copy = RunFolder(Path(shutil.copytree(folder.root, tmp_path / "a copy", symlinks=False)))
    if states == "gone":
        shutil.rmtree(copy.states)
    files = sorted(copy.root.rglob("*"))
    for name in ("last", "best"):
        with (
            pytest.raises(CheckpointError, match=rf"{name}: a folder where a link belongs.*ln -s") as error,
            copy.locked(),
        ):
            pass
        assert [path for path in sorted(copy.root.rglob("*")) if path.name != ".lock"] == files
        subprocess.run(["sh", "-c", str(error.value).split("`")[1]], check=True)
        files = [path for path in sorted(copy.root.rglob("*")) if path.name != ".lock"]
    with copy.locked():
        assert copy.read_record().step == 10
        copy.begin(copy.read_record())
    assert copy.best_metrics() == {"step": 10, "miou": 0.5}
    copy.load(tiny_model, optimizer)
    copy.save(tiny_model, optimizer, at(15))
    copy.save_best(tiny_model, {"step": 15, "miou": 0.6})
    assert copy.read_record().step == 15


def test_a_copy_that_left_links_out_goes_on(
    folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer
) -> None:
    for step in (5, 10):
        folder.save(tiny_model, optimizer, at(step))
    folder.save_best(tiny_model, {"step": 10, "miou": 0.5})
    (folder.states / "step-00000011.part").mkdir()
    folder.last.unlink()
    folder.best.unlink()
    with folder.locked():
        assert folder.holds_run
        assert folder.read_record().step == 10
        assert folder.best_metrics() == {"step": 10, "miou": 0.5}


def test_a_state_is_whole_while_it_has_its_name(
    folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (5, 10, 15):
        folder.save(tiny_model, optimizer, at(step))

    def killed(path: Path, **_: object) -> None:
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.begin(None)
    with folder.locked():
        folder.load(tiny_model, optimizer)


def test_begin_removes_what_a_kill_left(
    folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer
) -> None:
    for step in (5, 10):
        folder.save(tiny_model, optimizer, at(step))
    folder.save_best(tiny_model, {"step": 10, "miou": 0.5})
    for left in ("step-00000011", "step-00000012.part", "step-00000001", "best-00000003", "best-00000012.part"):
        (folder.states / left).mkdir()
        (folder.states / left / "model.safetensors").write_bytes(b"half")
    folder.begin(at(10))
    assert names(folder) == ["best-00000010", "step-00000005", "step-00000010"]
    # a state of the same step, left behind by a kill before it became last, does not stand in the way
    (folder.states / "step-00000015").mkdir()
    folder.save(tiny_model, optimizer, at(15))
    assert folder.read_record().step == 15


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_full_disk_leaves_the_last_state(
    folder: RunFolder,
    tiny_model: Segmenter,
    optimizer: torch.optim.Optimizer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for step in (1, 2):
        folder.save(tiny_model, optimizer, at(step))
    folder.save_best(tiny_model, {"step": 2, "miou": 0.5})
    before = names(folder)
    with full_disk_for(name, monkeypatch):
        with pytest.raises(CheckpointError, match=r"step-00000003: cannot be saved \(No space left.*make room"):
            folder.save(tiny_model, optimizer, at(3))
        if name == "model.safetensors":
            with pytest.raises(CheckpointError, match=r"best-00000003: cannot be saved"):
                folder.save_best(tiny_model, {"step": 3, "miou": 0.6})
    assert names(folder) == before
    assert folder.read_record().step == 2
    assert folder.best_metrics() == {"step": 2, "miou": 0.5}
    folder.load(tiny_model, optimizer)
    # and with room again, it goes on
    folder.save(tiny_model, optimizer, at(3))
    assert folder.read_record().step == 3


def test_file_system_refuses_for_real(
    folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer
) -> None:
    folder.save(tiny_model, optimizer, at(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step-00000002: cannot be saved .*[Ff]ile too large"):
            folder.save(tiny_model, optimizer, at(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(folder) == ["step-00000001"]
    folder.load(tiny_model, optimizer)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("training.json", b'{"step": 1', "training.json"),
        ("training.json", b'{"step": 1}', "training.json"),
        ("model.safetensors", b"\x10\x00", "model.safetensors"),
        ("optimizer.safetensors", b"\x10\x00", "optimizer.safetensors"),
    ],
)
def test_damaged_state_is_named(
    folder: RunFolder,
    tiny_model: Segmenter,
    optimizer: torch.optim.Optimizer,
    name: str,
    content: bytes,
    named: str,
) -> None:
    folder.save(tiny_model, optimizer, at(1))
    (folder.last / name).write_bytes(content)

    def resume() -> None:
        folder.read_record()
        folder.load(tiny_model, optimizer)

    with pytest.raises(CheckpointError, match=named):
        resume()


def test_optimizer_state_of_another_network(
    folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer
) -> None:
    folder.save(tiny_model, optimizer, at(1))
    state.write_tensors({"exp_avg/elsewhere": torch.zeros(1)}, folder.last / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match=r"elsewhere.*--resume never"):
        folder.load(tiny_model, optimizer)


def test_no_code_in_a_state(folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer) -> None:
    folder.save(tiny_model, optimizer, at(1))
    assert {path.suffix for path in folder.last.iterdir()} == {".json", ".safetensors"}
    json.loads((folder.last / "training.json").read_text())


def _hold(root: Path, held: "multiprocessing.queues.Queue[str]") -> None:
    try:
        with RunFolder(root).locked():
            held.put("held")
    except CheckpointError as error:
        held.put(str(error))


def test_one_process_at_a_time(folder: RunFolder) -> None:
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.queues.Queue[str] = context.Queue()

    def ask() -> str:
        process = context.Process(target=_hold, args=(folder.root, answers))
        process.start()
        process.join()
        return answers.get(timeout=10)

    with folder.locked():
        assert "another process is training here" in ask()
    assert ask() == "held"


def test_a_new_run_deletes_the_old(folder: RunFolder, tiny_model: Segmenter, optimizer: torch.optim.Optimizer) -> None:
    folder.begin(None)  # where there is nothing yet
    folder.save(tiny_model, optimizer, at(1))
    folder.save_best(tiny_model, {"step": 1, "miou": 0.5})
    assert folder.holds_run
    folder.begin(None)
    assert not folder.holds_run
    assert folder.best_metrics() is None
    assert names(folder) == []
