"""Stages of a network: every one is seen, none is counted twice, and labels stay what they were."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import profile

from segmenter.checkpoint import save_model
from segmenter_bench import stage_times
from segmenter_bench import stages as command
from segmenter_bench.ceilings import Ceilings
from segmenter_bench.roofline import STAGES, stages
from segmenter_bench.stages import Options, profiled, rows
from tests.networks import small_network


@pytest.fixture(scope="module", params=["mask", "linear"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stages")
    save_model(small_network(decoder=request.param), folder / "checkpoint")
    return profiled(Options(checkpoint=folder / "checkpoint", height=64, width=80, rounds=2, threads=1), "a command")


def test_every_stage_is_seen_and_the_labels_are_the_networks(run: dict[str, Any]) -> None:
    assert [row["stage"] for row in run["rows"]] == list(STAGES)
    linear = run["rows"][STAGES.index("mask scores")]["flops"] == 0
    unseen = {row["stage"] for row in run["rows"] if row["ms"] == 0.0}
    assert unseen == ({"mask scores"} if linear else set())
    assert run["settings"]["labels_unchanged"] is True
    assert sum(row["share_of_time"] for row in run["rows"]) == pytest.approx(1.0)


def test_the_sum_of_stages_is_near_the_whole(run: dict[str, Any]) -> None:
    # counted twice, a stage would add its whole time; ranges themselves cost some of so small a network
    assert run["settings"]["stages_ms"] == pytest.approx(sum(row["ms"] for row in run["rows"]))
    assert all(row["ms"] >= 0.0 for row in run["rows"])


def test_the_profilers_marks_stay_out_of_stderr_and_nothing_else_does(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = b"USDT:2026-11-26 05:28:46 1:1 SyncActivityProfilerHandler.cpp:52] profiler_start\n"

    class Marking(profile):
        """As PyTorch 2.13 does."""

        def start(self) -> None:
            os.write(2, mark + b"at its start\n")
            super().start()

        def stop(self) -> None:
            super().stop()
            os.write(2, mark)
            print("at its stop", file=sys.stderr)

    heard: list[str] = []

    def run(_: np.ndarray) -> torch.Tensor:
        os.write(2, b"an error\n")
        heard.append(capfd.readouterr().err)  # at once: the process may die in the next line
        return torch.zeros(1)

    monkeypatch.setattr(stage_times, "profile", Marking)
    stage_times.measured_stages(run, np.zeros(1), torch.device("cpu"), 2)
    assert heard == ["at its start\nan error\n", "at its stop\nat its start\nan error\n"]
    assert capfd.readouterr().err == "at its stop\n"


def event(name: str, start: float, end: float, on: DeviceType, annotation: bool = False) -> FunctionEvent:
    return FunctionEvent(
        id=0,
        name=name,
        thread=1,
        start_us=start,
        end_us=end,
        use_device="cuda",
        device_type=on,
        is_user_annotation=annotation,
        stack=[],
        input_shapes=[],
    )


def test_on_a_gpu_each_kernel_is_counted_once_by_the_innermost_range_and_waiting_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kineto writes a range on the CPU's side and on the GPU's; on the CPU's it lacks what Triton launches itself."""
    cpu, gpu = DeviceType.CPU, DeviceType.CUDA
    product = event("aten::mm", 10, 50, cpu)
    product.append_kernel("gemm", 0, 1000.0)

    class Profiled:
        def __init__(self, activities: Any) -> None:
            assert len(activities) == 2

        def start(self) -> None: ...

        def stop(self) -> None: ...

        def events(self) -> EventList:
            on_cpu = [event("stage: MLP", 0, 100, cpu, True), product, event("stage: attention", 100, 200, cpu, True)]
            ranges = [
                event("stage: MLP", 200, 1200, gpu, True),
                event("stage: attention", 1300, 2300, gpu, True),
                event("stage: decoder", 3000, 4000, gpu, True),
                event("stage: mask scores", 3400, 3600, gpu, True),
            ]
            kernels = [
                event("gemm", 200, 1200, gpu),
                event("attention_kernel", 1300, 1800, gpu),
                event("attention_kernel", 2200, 2300, gpu),
                event("gemm", 3000, 3300, gpu),
                event("scores_kernel", 3400, 3600, gpu),
                event("layer_norm", 3900, 4000, gpu),
                event("of no stage", 5000, 6000, gpu),
            ]
            events = EventList([*on_cpu, *ranges, *kernels], use_device="cuda")
            events._build_tree()
            return events

    monkeypatch.setattr(stage_times, "profile", Profiled)
    monkeypatch.setattr(stage_times, "wait", lambda device: None)
    found = stage_times.measured_stages(lambda _: torch.zeros(1), np.zeros(1), torch.device("cuda"), 1)
    assert {name: ms for name, ms in found.items() if ms} == pytest.approx(
        {"MLP": 1.0, "attention": 0.6, "decoder": 0.4, "mask scores": 0.2}
    )


def test_rows_set_time_beside_the_bound() -> None:
    config = small_network().config
    asked = stages(config, 64, 80)
    took = dict.fromkeys(STAGES, 2.0)
    found = {row["stage"]: row for row in rows(asked, took, Ceilings(tflops=1e-6, gb_per_s=1e9))}
    mlp = next(stage for stage in asked if stage.name == "MLP")
    assert found["MLP"]["bound_ms"] == pytest.approx(mlp.flops / 1e6 * 1e3)
    assert found["MLP"]["share_of_bound"] == pytest.approx(mlp.flops / 1e6 * 1e3 / 2.0)
    assert found["MLP"]["share_of_time"] == pytest.approx(1 / len(STAGES))


def test_the_command_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(small_network(), tmp_path / "checkpoint")
    arguments = ["--checkpoint", str(tmp_path / "checkpoint"), "--height", "48", "--width", "48", "--rounds", "1"]
    assert command.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "upsample + argmax" in capsys.readouterr().out
    (file,) = (tmp_path / "out").glob("stages-*.json")
    assert json.loads(file.read_text())["kind"] == "stages"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass either --checkpoint FOLDER or --variant NAME"),
        (["--variant", "Seg-Ti/16", "--batch", "0"], "--batch 0: wanted at least 1"),
        (["--variant", "Seg-Ti/16", "--height", "8"], "size 8x512 is smaller than one 16 pixel patch"),
        (["--variant", "Seg-Ti/99"], "is unknown"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_kernels_without_a_gpu_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--variant", "Seg-Ti/16", "--ops", "triton", "--out", str(tmp_path)]) == 2
    assert "--ops triton: no CUDA device here" in capsys.readouterr().err


QUIET = {"device": "cpu", "threads": 2, "others_busy": 0.0, "stages_ms": 11.0, "whole_ms": 10.0}


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "usable_cores", lambda: 8)
    assert command.notes(QUIET) == command.notes(QUIET | {"others_busy": None}) == []
    (busy,) = command.notes(QUIET | {"others_busy": 0.6, "threads": 8})
    assert "Other programs took 60% of the 8 CPU cores" in busy
    assert "of which this run used 8 threads" in busy
    assert busy.endswith("with --threads 3.")
    assert command.notes(QUIET | {"others_busy": 0.6, "device": "GPU 9000"}) == []  # its own clock times the stages
    (apart,) = command.notes(QUIET | {"stages_ms": 31.0})
    assert apart.startswith("The stages come to 3.1 times the whole network")


def test_a_run_says_how_busy_others_were(run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert 0.0 <= run["settings"]["others_busy"] <= 1.5
    assert run["notes"] == command.notes(run["settings"])
    command.show(run | {"notes": ["a note for readers"]})
    assert "a note for readers" in capsys.readouterr().out
