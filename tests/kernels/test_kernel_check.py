"""Judging kernels on a GPU, as far as a machine without one goes: small shapes, interpreted; stand-in processes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import segmenter_kernels
from segmenter_bench import kernel_check, kernel_race, kernel_step
from segmenter_bench.kernel_check import BATCHES, check, jobs, judged
from segmenter_bench.runs import read_run
from segmenter_kernels import tiles, timing, workers, workloads
from segmenter_kernels.checks import INTERPRETED
from segmenter_kernels.judging import budget
from segmenter_kernels.workload import Workload
from segmenter_kernels.workloads import OPS
from tests.kernels.conftest import DEVICE

AT = torch.device(DEVICE)
HALF = torch.float16


def small(op: str, B: int) -> Workload:
    found = {
        "attention": lambda: workloads.attention(B, 33, 2, 32, HALF),
        "add_layernorm": lambda: workloads.norm("add_layernorm", B, 5, 64, HALF),
        "layernorm": lambda: workloads.norm("layernorm", B, 5, 64, HALF),
        "layernorm_quantize": lambda: workloads.norm("layernorm_quantize", B, 5, 64, HALF),
        "mask_scores": lambda: workloads.mask_scores(B, 5, 64, HALF),
        "upsample_argmax": lambda: workloads.upsample_argmax(B, 32, HALF),
        "merge_windows": lambda: workloads.merge_windows((32, 40), 32, 16, HALF),
        "patch_embed": lambda: workloads.patch_embed(B, 32, 64, HALF),
        "quantize": lambda: workloads.quantize(B, 5, 64, HALF),
        "rotate": lambda: workloads.rotate(B, 5, 2, 32, HALF),
        "resize": lambda: workloads.resize(B, 16, (40, 24)),
        "normalize": lambda: workloads.normalize(B, 24),
    }
    return found[op]() if op in found else workloads.eight_bits(op, B, 5, 64, HALF)


@pytest.mark.parametrize(
    "op",
    [
        *("attention", "upsample_argmax", "merge_windows", "layernorm", "layernorm_quantize"),
        *("quantize", "linear_int8", "linear_fp8", "rotate", "resize", "normalize"),
    ],
)
def test_right_kernels_are_right(op: str) -> None:
    found = judged(small(op, 2), AT)
    assert (found["status"], found["reason"]) == ("ok", None)
    assert found["error"] <= found["budget"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_is_no_number_is_no_measure() -> None:
    truth, half = torch.tensor([3.0, -4.0], dtype=torch.float64), torch.float16
    ulp = 4 * torch.finfo(half).eps
    assert budget(0.5, truth, half) == 1.0
    assert budget(float("nan"), truth, half) == ulp
    assert budget(float("inf"), truth, half) == float("inf")  # out of its range, as the kernel may be
    assert budget(float("nan"), truth / 0, half) == 0.0


def changed(op: str, change: Callable[[torch.Tensor], object], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    right = getattr(segmenter_kernels, op)

    def wrong(*arguments: Any, **named: Any) -> Any:
        outputs = right(*arguments, **named)
        change(outputs if isinstance(outputs, torch.Tensor) else outputs[-1])
        return outputs

    monkeypatch.setattr(segmenter_kernels, op, wrong)
    return judged(small(op, 3), AT)


@pytest.mark.parametrize("op", ["attention", "add_layernorm", "mask_scores", "upsample_argmax"])
def test_an_error_in_the_last_image_is_seen(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(y: torch.Tensor) -> None:
        y[-1, -1, -1] += 1

    found = changed(op, change, monkeypatch)
    assert found["status"] == "wrong"
    assert found["reason"].startswith("error ")


def test_an_element_never_written_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    filled = []

    def launch(x: torch.Tensor, *_: Any, **__: Any) -> Any:
        z, y = segmenter_kernels.reference.add_layernorm(x, *_)
        unwritten = torch.empty_like(y)
        filled.append(bool(unwritten.isnan().all()))
        unwritten[:, 1:] = y[:, 1:]
        return z, unwritten

    monkeypatch.setattr(segmenter_kernels, "add_layernorm", launch)
    assert judged(small("add_layernorm", 2), AT)["status"] == "wrong"
    assert filled == [True]


def test_jobs_are_all_ops_in_all_types_fp16_first() -> None:
    found = jobs(OPS, 90)
    assert {(op, kind) for op, kind, _ in found} == {(op, kind) for op in OPS for kind in BATCHES}
    assert [kind for _, kind, _ in found] == sorted((kind for _, kind, _ in found), key=list(BATCHES).index)
    assert len(set(found)) == len(found)
    assert not any(op == "linear_fp8" for op, _, _ in jobs(OPS, 80))
    assert len([one for one in found if one[:2] == ("attention", "bf16")]) == len(workloads.TOKENS)


class AtOnce:
    """`Workers` that need no process."""

    def __init__(self, count: int) -> None:
        assert count > 0

    def __enter__(self) -> "AtOnce":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[Any], tuple[Any, bool]], todo: Sequence[Any]) -> Iterator[Any]:
        for index, job in enumerate(todo):
            yield "its process died" if index == 1 else function(job)[0]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for one, at small shapes."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU 9000")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(tiles, "architecture_of", lambda device: 90)
    monkeypatch.setattr(workloads, "of_op", lambda op, dtype, batches, widths=(): [small(op, B) for B in batches])
    draw = Workload.arguments
    monkeypatch.setattr(Workload, "arguments", lambda self, device: draw(self, AT))
    monkeypatch.setattr(workers, "Workers", AtOnce)


@pytest.mark.skipif(not INTERPRETED, reason="the stand-in for a GPU would be beside one")
def test_what_was_judged_is_written_with_what_failed(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    monkeypatch.setattr(kernel_check, "write_run", lambda run, out: written.append(len(run["rows"])) or out / "x")
    assert kernel_check.main(["--op", "add_layernorm", "--out", str(tmp_path)]) == 1
    assert written == [1, 2, 3, 4, 4]
    assert "1 of 4 wrong, the first: add_layernorm: its process died" in capsys.readouterr().out


@pytest.mark.skipif(not INTERPRETED, reason="the stand-in for a GPU would be beside one")
def test_nothing_to_judge_is_an_empty_run_and_no_workers_are_refused(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiles, "architecture_of", lambda device: 80)
    assert kernel_check.main(["--op", "linear_fp8", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    assert read_run(file)["rows"] == []
    with pytest.raises(SystemExit):
        kernel_check.main(["--workers", "0", "--out", str(tmp_path)])
    assert capsys.readouterr().err.endswith("error: --workers 0: wanted at least 1\n")


def test_widths_that_are_none_are_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kernel_step.main(["--op", "add_layernorm", "--width", "b", "--out", str(tmp_path)])
    assert "argument --width: invalid choice: 'b'" in capsys.readouterr().err


def test_a_failure_is_a_row_and_says_whether_its_process_is_spoiled(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("illegal\nmemory access")

    monkeypatch.setattr(segmenter_kernels, "add_layernorm", fails)
    found, usable = check(("add_layernorm", "fp16", 0))
    assert (found["status"], found["reason"], usable) == ("failed", "RuntimeError: illegal memory access", True)
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert not check(("add_layernorm", "fp16", 0))[1]


@pytest.mark.skipif(not INTERPRETED, reason="the stand-in for a GPU would be beside one")
def test_speeds_are_written_as_they_come(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [
        kernel_race.Ceilings({"float": 700.0}, 3000.0),
        kernel_race.Ceilings({"float": 650.0, "fp8": 900.0}, 3300.0),
    ]
    monkeypatch.setattr(kernel_race, "ceilings_of", lambda *_: limits[len(seen) // 2])
    monkeypatch.setattr(timing, "copies", lambda arguments, device: [arguments])
    monkeypatch.setattr(timing, "capture", lambda call, arguments: SimpleNamespace(replay=lambda: 0.5))
    monkeypatch.setattr(tiles, "of_device", lambda *_: tiles.of_architecture(*_[:2], 80))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    seen: list[int] = []
    right = kernel_step.write_run
    monkeypatch.setattr(kernel_step, "write_run", lambda run, out: seen.append(len(run["rows"])) or right(run, out))
    assert kernel_step.main(["--op", "add_layernorm", "--width", "B", "--out", str(tmp_path)]) == 0
    assert seen == [3, 6, 6]
    (file,) = tmp_path.iterdir()
    run = read_run(file)
    assert [(row["provider"], row["batch"]) for row in run["rows"]] == [
        (name, batch) for batch in (1, 8) for name in ("triton", "eager", "compiled")
    ]
    # of two readings the better is the ceiling
    assert run["settings"]["ceilings"] == {"tflops": {"float": 700.0, "fp8": 900.0}, "gb_per_s": 3300.0}
    assert [one["gb_per_s"] for one in run["settings"]["ceilings_read"]] == [3000.0, 3300.0]
    assert {row["share"] for row in run["rows"]} == {row["gb_per_s"] / 3300.0 for row in run["rows"]}
    assert run["rows"][0]["tile"] == {"BLOCK_M": 8, "num_warps": 1}
    assert run["rows"][1]["tile"] is None
    assert run["command"].endswith(f"--op add_layernorm --width B --out {tmp_path}")


def test_what_is_written_is_not_in_the_cache_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one sweep over the arguments every result has memory of its own."""
    alive: list[set[int]] = []
    held: set[int] = set()

    class Result:
        def __init__(self) -> None:
            held.add(id(self))
            alive.append(set(held))

        def __del__(self) -> None:
            held.discard(id(self))

    class Nothing:
        def __enter__(self) -> "Nothing":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    stream = SimpleNamespace(wait_stream=lambda other: None)
    event = lambda **_: SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 3.0)  # noqa: E731
    fake = SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda stream: Nothing(),
        graph=lambda graph: Nothing(),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
        Event=event,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    timing.measure(lambda index: Result(), [(index,) for index in range(3)], 2)
    assert [len(each) for each in alive[-3:]] == [1, 2, 3]
    assert not held
