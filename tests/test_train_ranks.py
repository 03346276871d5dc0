"""Training by several processes is the training of one: the same weights, evaluations and states, and ends as one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segmenter.checkpoint import load_model, save_model
from segmenter.config import SegmenterConfig
from segmenter.errors import ConfigError
from segmenter.model import Segmenter
from segmenter.ranks import Ranks
from segmenter.training.options import TrainOptions
from segmenter.training.run import _require_one_folder, _require_shared
from segmenter.training.state import RunFolder
from tests.training.ranks import run_ranks, start_ranks
from tests.training.runs import TINY, assert_same_weights, losses, metrics, run_here

# no chance in the network, for it differs from part to part; a batch that two share unevenly
STEADY = [*TINY, "--dropout", "0", "--drop-path", "0", "--batch", "5", "--steps", "6", "--optimizer", "sgd"]
STEADY += ["--lr", "1e-2", "--class-weights", "--ema", "0.9", "--eval-every", "3"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run_here([*STEADY, "--out", str(out)]) == 0
    return out


def assert_close_weights(first: Path, second: Path) -> None:
    for name in ("model", "learning"):
        ours, theirs = (load_file(out / "last" / f"{name}.safetensors") for out in (first, second))
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-5, msg=key)


def judged(out: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["miou"]) for record in records if "miou" in record]


def test_two_processes_equal_one(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run_ranks(2, [*STEADY, "--out", str(out)], tmp_path) == [0, 0]
    assert_close_weights(alone, out)
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    assert [step for step, _ in judged(out)] == [3, 6]
    assert metrics(out)["miou"] == pytest.approx(metrics(alone)["miou"], abs=1e-3)
    # the first alone speaks
    assert "mIoU" in (tmp_path / "0").read_text()
    assert (tmp_path / "1").read_text() == ""


def test_two_processes_are_two_parts_to_the_bit(tmp_path: Path) -> None:
    # with chance, AdamW, clipping, a frozen block and workers
    options = [*TINY, "--batch", "4", "--steps", "6", "--eval-every", "2", "--ema", "0.9"]
    options += ["--freeze-encoder-blocks", "1", "--freeze-for", "0.5", "--clip-grad", "0.1"]
    assert run_here([*options, "--accumulate", "2", "--out", str(tmp_path / "parts")]) == 0
    assert run_ranks(2, [*options, "--workers", "1", "--out", str(tmp_path / "ranks")], tmp_path) == [0, 0]
    assert losses(tmp_path / "parts") == losses(tmp_path / "ranks")
    assert_same_weights(tmp_path / "parts", tmp_path / "ranks")
    # the confusion matrices of shares add up to that of all
    assert judged(tmp_path / "parts") == judged(tmp_path / "ranks")
    assert metrics(tmp_path / "parts")["iou"] == metrics(tmp_path / "ranks")["iou"]


def test_rotary_positions_are_the_same_in_two_processes(tmp_path: Path, tiny_config: SegmenterConfig) -> None:
    encoder = replace(tiny_config.encoder, positions="rotary", registers=2, layer_scale=True, drop_path=0.0)
    torch.manual_seed(0)
    model = Segmenter(replace(tiny_config, encoder=encoder))
    assert model.encoder.rotary is not None
    model.encoder.rotary.periods.mul_(1.3)
    save_model(model, tmp_path / "start")
    options = [*TINY[6:], "--init", str(tmp_path / "start"), "--batch", "4", "--steps", "3", "--ema", "0.9"]
    options += ["--layer-decay", "0.8", "--freeze-encoder-blocks", "1", "--freeze-for", "0.5", "--eval-every", "2"]
    assert run_here([*options, "--accumulate", "2", "--out", str(tmp_path / "parts")]) == 0
    assert run_ranks(2, [*options, "--out", str(tmp_path / "ranks")], tmp_path) == [0, 0]
    assert losses(tmp_path / "parts") == losses(tmp_path / "ranks")
    assert_same_weights(tmp_path / "parts", tmp_path / "ranks")
    trained, start = load_model(tmp_path / "ranks" / "last"), model.state_dict()
    same = {name for name, tensor in trained.state_dict().items() if torch.equal(tensor, start[name])}
    assert same == {"encoder.rotary.periods"}


def test_a_run_goes_on_with_more_and_with_fewer(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*STEADY, "--out", str(out), "--save-every-seconds", "0"]

    def stopped(count: int, step: int) -> None:
        processes = start_ranks(count, options, tmp_path / str(count))
        while (RunFolder(out).read_record().step if RunFolder(out).holds_run else 0) < step:
            assert any(process.is_alive() for process in processes)
            time.sleep(0.005)
        # one of them, and not the first
        os.kill(processes[-1].pid or 0, signal.SIGTERM)
        for process in processes:
            process.join(60)
        assert {process.exitcode for process in processes} <= {128 + signal.SIGTERM, 0}

    stopped(1, 1)
    stopped(2, 3)
    assert run_here(options) == 0
    assert list(losses(out)) == [1, 2, 3, 4, 5, 6]
    assert_close_weights(alone, out)
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    assert [step for step, _ in judged(out)] == [3, 6]


def test_a_signal_to_one_stops_all_and_saves_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*TINY, "--batch", "2", "--steps", "4000", "--out", str(out), "--save-every-seconds", "1000"]
    options += ["--limit", "2000"]  # no end of an epoch either
    processes = start_ranks(2, options, tmp_path)
    _until_it_trains(out)
    os.kill(processes[1].pid or 0, signal.SIGTERM)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [128 + signal.SIGTERM] * 2
    (state,) = (out / "states").iterdir()
    assert RunFolder(out).read_record().step == list(losses(out))[-1] == int(state.name[-8:])
    assert (tmp_path / "0").read_text().count("the same command goes on") == 1
    assert (tmp_path / "1").read_text() == ""


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_is_killed_is_named(dead: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*TINY, "--batch", "2", "--steps", "4000", "--out", str(out), "--save-every-seconds", "1000"]
    processes = start_ranks(2, options, tmp_path)
    _until_it_trains(out)
    os.kill(processes[dead].pid or 0, signal.SIGKILL)
    for process in processes:
        process.join(60)
    assert processes[1 - dead].exitcode == 2
    (line,) = [one for one in (tmp_path / str(1 - dead)).read_text().splitlines() if one.startswith("error:")]
    if dead == 1:
        assert f"rank 1 of 2 (process {processes[1].pid} on " in line
        assert "ended before its time" in line
        # what was learnt before is kept
        assert RunFolder(out).read_record().step >= list(losses(out))[-1] > 1
    else:
        # it kept the list of who is who
        assert "a process of the 2 ended before its time" in line


def test_machines_that_share_no_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, options = Ranks("cpu", 0, 2), TrainOptions(out=Path("run"))
    monkeypatch.setattr(ranks, "largest", lambda *values: (-3.0, 7.0))  # one resumes from step 3, the other from 7
    with pytest.raises(ConfigError, match=r"--out run: machines see other states in it \(steps 3 to 7\)"):
        _require_one_folder(ranks, 7, options)
    monkeypatch.setattr(ranks, "largest", lambda *values: (-7.0, 7.0))
    _require_one_folder(ranks, 7, options)


def test_a_folder_of_the_same_name_on_another_machine_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmenter.training.state._LATE_S", 0.0)
    other, none = RunFolder(tmp_path / "other"), RunFolder(tmp_path / "none")
    with other.locked(), RunFolder(tmp_path / "run").locked() as token:
        second = Ranks("cpu", 1, 2)

        def of_second(folder: RunFolder) -> None:
            of_first = iter([float(token), 0.0])
            monkeypatch.setattr(second, "largest", lambda value: (max(value, next(of_first)),))
            _require_shared(second, folder, 0)

        of_second(RunFolder(tmp_path / "run"))
        for folder in (other, none):
            with pytest.raises(ConfigError, match=r"not every machine sees there .* a folder that all of them share"):
                of_second(folder)
        assert not none.root.exists()
        # and the first, which sees it, hears of the second
        first = Ranks("cpu", 0, 2)
        monkeypatch.setattr(first, "largest", lambda value: (1.0,))
        with pytest.raises(ConfigError, match="not every machine"):
            _require_shared(first, RunFolder(tmp_path / "run"), token)


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    options = [*TINY, "--steps", "4", "--out", str(tmp_path / "run")]
    for mistake, named in ((["--batch", "1"], "--batch 1: wanted 2 or more"), (["--min-lr", "-1"], "learning rate")):
        said = tmp_path / named[:7]
        assert run_ranks(2, [*options, *mistake], said) == [2, 2]
        (line,) = [one for rank in "01" for one in (said / rank).read_text().splitlines() if "error:" in one]
        assert named in line


def test_a_loss_that_is_no_number_is_told_once(tmp_path: Path) -> None:
    options = [*TINY, "--steps", "30", "--batch", "4", "--optimizer", "sgd", "--lr", "1e30", "--out"]
    assert run_ranks(2, [*options, str(tmp_path / "run")], tmp_path) == [2, 2]
    (line,) = [one for rank in "01" for one in (tmp_path / rank).read_text().splitlines() if "error:" in one]
    assert "came apart at step" in line
    (file,) = (tmp_path / "run").glob("bad-batch-*")
    assert load_file(file)["images"].shape == (4, 3, 32, 32)  # of both processes


@pytest.mark.slow
def test_torchrun_is_stopped_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train = ["segmenter.train", *TINY, "--batch", "4", "--steps", "200", "--save-every-seconds", "1000"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *train]
    job = subprocess.Popen([*torchrun, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    _until_it_trains(out)
    job.terminate()
    _, said = job.communicate(timeout=120)
    assert said.count("the same command goes on") == 1
    step = RunFolder(out).read_record().step
    assert step == list(losses(out))[-1]
    done = subprocess.run([*torchrun, "--out", str(out)], stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0
    assert done.stdout.count("mIoU") == 1
    assert list(losses(out)) == list(range(1, 201))


def _until_it_trains(out: Path) -> None:
    began = time.monotonic()
    while not (out / "metrics.jsonl").is_file() or len(losses(out)) < 3:
        assert time.monotonic() - began < 120
        time.sleep(0.02)
