"""The bench of kernels without a GPU: rows, their judgement and their arithmetic; what each kernel needs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from segmenter.cli import main as segmenter
from segmenter_bench.kernel_race import Ceilings, Rival, ceilings_of, past, rivals_of, rows_of
from segmenter_bench.kernels import show
from segmenter_bench.runs import new_run, write_run
from segmenter_kernels import aot, workloads
from segmenter_kernels.timing import Captured, Quantiles
from segmenter_kernels.workload import Workload
from tests.kernels.conftest import DEVICE
from tests.kernels.test_aot import GOOD

CEILINGS = Ceilings({"float": 2.0}, 100.0)


def half_a_millisecond(call: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> Quantiles:
    return Quantiles(0.5, 0.4, 0.6)


def captured(call: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> Captured:
    return Clock([0.4, 0.5, 0.6])  # type: ignore[return-value]


class Clock:
    """A kernel whose replays take these milliseconds, over and over."""

    def __init__(self, ms: Sequence[float], replayed: Callable[[], object] = lambda: None) -> None:
        self.ms, self.replayed, self.replays = ms, replayed, 0

    def replay(self) -> float:
        self.replayed()
        self.replays += 1
        return self.ms[self.replays % len(self.ms)]


def rows(workload: Workload, *rivals: Rival, capture: Any = captured) -> list[dict[str, Any]]:
    return rows_of(workload, rivals, [workload.arguments(torch.device(DEVICE))], CEILINGS, capture)


def test_kernels_of_a_shape_take_turns_when_all_are_captured() -> None:
    workload, order = workloads.norm("add_layernorm", 2, 5, 64, torch.float16), []
    names = iter("abc")

    def capture(*_: Any) -> Clock:
        name = next(names)
        order.append(name.upper())
        return Clock([ord(name) / 100], lambda: order.append(name))

    found = rows(workload, *(Rival(name, workload.plain) for name in "abc"), capture=capture)
    assert "".join(order) == "ABC" + ("abc" + "bca" + "cab") * 8 + "abc"
    assert [row["ms_p50"] for row in found] == [0.97, 0.98, 0.99]


def test_a_kernel_that_fails_when_it_is_replayed_gives_no_times() -> None:
    workload = workloads.norm("add_layernorm", 2, 5, 64, torch.float16)

    def fails() -> None:
        raise RuntimeError("illegal memory access")

    capture = lambda *_: Clock([0.5], fails)  # noqa: E731
    wrong = Rival("wrong", lambda *x: workload.plain(*x)[::-1])
    found = rows(workload, wrong, Rival("right", workload.plain), capture=capture)
    assert [(row["status"], row["ms_p50"]) for row in found] == [("wrong", None), ("failed", None)]
    assert found[1]["reason"] == "RuntimeError: illegal memory access"


def test_a_share_past_its_ceiling_is_told() -> None:
    workload = workloads.norm("add_layernorm", 2, 5, 64, torch.float16)
    found = rows(workload, Rival("triton", workload.launch), Rival("wrong", lambda *x: workload.plain(*x)[::-1]))
    assert past(found) == ""
    found[0]["share"] = 1.27
    assert past(found).startswith("Past 100 % of its ceiling")


def test_a_right_answer_has_a_speed_and_a_share_of_what_bounds_it() -> None:
    workload = workloads.norm("add_layernorm", 2, 5, 64, torch.float16)
    (row,) = rows(workload, Rival("triton", workload.launch))
    assert (row["op"], row["provider"], row["dtype"], row["status"]) == ("add_layernorm", "triton", "float16", "ok")
    assert row["error"] <= row["budget"]
    assert (row["ms_p50"], row["ms_p20"], row["ms_p80"]) == (0.5, 0.4, 0.6)
    assert row["gb_per_s"] == pytest.approx(4 * 2 * 5 * 64 * 2 / 0.5e-3 / 1e9)
    assert row["share"] == pytest.approx(row["gb_per_s"] / 100.0)
    workload = workloads.linear("linear_gelu", 2, 5, 64, torch.float16)
    (row,) = rows(workload, Rival("triton", workload.launch))
    assert row["tflops"] == pytest.approx(2 * 2 * 5 * 64 * 256 / 0.5e-3 / 1e12)
    assert row["share"] == pytest.approx(row["tflops"] / 2.0)


def test_ceilings_are_work_over_time() -> None:
    found = ceilings_of(torch.float16, torch.device(DEVICE), half_a_millisecond, side=16, copied_bytes=1000)
    assert found.tflops["float"] == pytest.approx(2 * 16**3 / 0.5e-3 / 1e12)
    assert found.gb_per_s == pytest.approx(2 * 1000 / 0.5e-3 / 1e9)


def test_a_wrong_answer_and_a_failure_have_none() -> None:
    workload = workloads.norm("add_layernorm", 2, 5, 64, torch.float16)

    def wrong(*arguments: Any) -> Any:
        return [x * 1.01 for x in workload.plain(*arguments)]

    def failing(*arguments: Any) -> Any:
        raise RuntimeError("no kernel\nfor this")

    found = rows(workload, Rival("wrong", wrong), Rival("failing", failing), Rival("right", workload.plain))
    assert [row["status"] for row in found] == ["wrong", "failed", "ok"]
    assert found[0]["reason"].startswith("error ")
    assert found[1]["reason"] == "RuntimeError: no kernel for this"
    assert found[0]["ms_p50"] is found[1]["ms_p50"] is found[0]["tflops"] is None


@pytest.mark.parametrize("op", [op for op in workloads.OPS if op != "linear_fp8"])
def test_rivals_compute_what_they_are_judged_by(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    small = {
        "attention": workloads.attention(1, 9, 2, 32, torch.float16),
        "patch_embed": workloads.patch_embed(1, 32, 64, torch.float16),
        "mask_scores": workloads.mask_scores(1, 5, 64, torch.float16),
        "upsample_argmax": workloads.upsample_argmax(1, 32, torch.float16),
        "merge_windows": workloads.merge_windows((32, 40), 32, 16, torch.float16),
        "quantize": workloads.quantize(1, 5, 64, torch.float16),
        "linear_int8": workloads.eight_bits("linear_int8", 1, 32, 64, torch.float16),
        "add_layernorm": workloads.norm("add_layernorm", 1, 5, 64, torch.float16),
        "layernorm": workloads.norm("layernorm", 1, 5, 64, torch.float16),
        "rotate": workloads.rotate(1, 5, 2, 32, torch.float16),
        "resize": workloads.resize(1, 16, (40, 24)),
        "normalize": workloads.normalize(1, 32),
        "layernorm_quantize": workloads.norm("layernorm_quantize", 1, 5, 64, torch.float16),
    }
    workload = small[op] if op in small else workloads.linear(op, 1, 5, 64, torch.float16)
    rivals = list(rivals_of(workload))
    third = "sdpa-flash" if op == "attention" else "compiled"  # compiled, attention is a call of one of PyTorch's
    assert [rival.name for rival in rivals[:3]] == ["triton", "eager", third]
    for row in rows(workload, *rivals):
        # a CPU lacks most ways to attention, and says so
        assert row["status"] == "ok" or row["provider"].startswith("sdpa-")


def test_every_workload_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, right = [], torch.compile

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: right(function, backend=backend, **options))
    for count in range(1, 12):
        workload = workloads.norm("add_layernorm", 1, count, 16, torch.float16)
        (rival,) = (one for one in rivals_of(workload) if one.name == "compiled")
        rival.call(*workload.arguments(torch.device("cpu")))
        assert len(compiled) == count


def test_a_run_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workload = workloads.norm("add_layernorm", 2, 5, 64, torch.float16)
    settings = {"dtype": "fp16", "ceilings": {"tflops": {"float": 700.0}, "gb_per_s": 4000.0}}
    run = new_run("kernels", "segmenter bench-kernels", {"name": "NVIDIA Toy"}, settings)
    run["rows"] = rows(workload, Rival("triton", workload.launch), Rival("bad", lambda *x: workload.plain(*x)[::-1]))
    run["unavailable"] = [{"engine": "linear_fp8", "reason": "compute capability 8.0 lacks what it needs"}]
    show(run)
    printed = capsys.readouterr().out
    for words in ("float product 700 TFLOP/s", "2 x 5 x 64", "0.5000", "wrong bad add_layernorm", "linear_fp8"):
        assert words in printed
    saved = json.loads(write_run(run, tmp_path).read_text())
    assert saved["machine"]["versions"]["torch"]
    assert saved["rows"][0]["status"] == "ok"


def test_without_a_gpu_it_prints_what_kernels_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def compile_all(architectures: Sequence[int], only: str = "") -> list[Any]:
        asked.append((tuple(architectures), only))
        return [GOOD]

    monkeypatch.setattr(aot, "compile_all", compile_all)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert segmenter(["bench-kernels", "--op", "attention", "--architectures", "90"]) == 0
    assert asked == [((90,), "attention")]
    printed = capsys.readouterr()
    assert "registers" in printed.out
    assert "toy" in printed.out
    assert "no CUDA device here" in printed.err


def test_interpreted_kernels_cannot_be_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_all(*_: Any, **__: Any) -> list[Any]:
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")

    monkeypatch.setattr(aot, "compile_all", compile_all)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert segmenter(["bench-kernels"]) == 2
    assert "error: TRITON_INTERPRET is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "softmax"], "op 'softmax' is unknown; choose from attention, patch_embed"),
        (["--architectures", "75"], "architecture 75: wanted some of 80, 86, 89, 90, 100, 120"),
        (["--batch", "0"], "--batch 0: wanted sizes of at least 1"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert segmenter(["bench-kernels", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
