"""Targets: met, missed or not measured, by the rows of a GPU alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from segmenter.errors import DataError
from segmenter_bench import acceptance_page, targets
from segmenter_bench.acceptance import PAGE
from segmenter_bench.acceptance_steps import RUNS
from segmenter_bench.page import page
from segmenter_bench.page_markdown import markdown
from segmenter_bench.sections import Section, sections
from segmenter_bench.targets import Target, sheet
from segmenter_kernels import workloads
from tests.bench_samples import _run, kernels_run, model, throughput_run

LIMITS = {"tflops": {"float": 800.0}, "gb_per_s": 3000.0}


def row(op: str, shape: str, provider: str = "triton", ms: float | None = 0.1, **rest: Any) -> dict[str, Any]:
    none = {"status": "ok", "reason": None, "tflops": 100.0, "gb_per_s": 2700.0, "share": 0.5}
    return {"op": op, "shape": shape, "dtype": "float16", "provider": provider, "ms_p50": ms, **none, **rest}


def kernels(*rows: dict[str, Any]) -> dict[str, Any]:
    return _run("kernels", {"name": "GPU 9000"}, rows=list(rows), settings={"dtype": "fp16", "ceilings": LIMITS})


def network(batch: int, **ms: float | None) -> Section:
    rows = [
        {
            **{"engine": name.replace("_", "-"), "batch": batch, "region": "labels", "device": "GPU 9000"},
            **{"status": "ok" if one else "failed", "reason": None if one else "error 1", "precision": "fp16"},
            **{"timing": {"ms_p50": one, "images_per_s": 1e3 * batch / one} if one else None},
        }
        for name, one in ms.items()
    ]
    run = _run("throughput", model("Seg-B-Mask/16", False), rows=rows, settings={"rounds": 5, "reference": "gpu-sdpa"})
    (found,) = sections([run])
    return found


def judged(runs: list[dict[str, Any]], *found: Section) -> dict[str, Target]:
    return {one.what: one for one in targets.targets(runs, found)}


def test_shapes_are_those_that_are_timed() -> None:
    import torch

    assert workloads.TOKENS == targets.TOKENS
    shapes = {
        op: {one.shape for one in workloads.of_op(op, torch.float16, targets.BATCHES, ("B",))} for op in workloads.OPS
    }
    wanted = {f"{B} x {N}, 12 x 64" for B in targets.BATCHES for N in targets.TOKENS}
    assert shapes["attention"] == wanted
    assert shapes["upsample_argmax"] == {f"{B} x 150 x 32 x 32 to 512 x 512" for B in targets.BATCHES}
    assert all("768" in shape for op in targets.BOUND_BY_MEMORY for shape in shapes[op])


@pytest.mark.parametrize(
    ("cudnn", "flash", "verdict", "told"),
    [
        (0.11, 0.2, "met", "1.10 x sdpa-cudnn, 2.00 x sdpa-flash"),
        (0.09, 0.2, "missed", "0.90 x sdpa-cudnn, 2.00 x sdpa-flash"),
        (None, 0.2, "not measured", "sdpa-cudnn failed: no plan, 2.00 x sdpa-flash"),
        (None, 0.05, "missed", "sdpa-cudnn failed: no plan, 0.50 x sdpa-flash"),
    ],
)
def test_attention_is_held_against_both(cudnn: float | None, flash: float, verdict: str, told: str) -> None:
    shape = "8 x 1025, 12 x 64"
    failed = {} if cudnn else {"status": "failed", "reason": "no plan"}
    runs = [kernels(row("attention", shape), row("attention", shape, "sdpa-flash", flash))]
    runs[0]["rows"].append(row("attention", shape, "sdpa-cudnn", cudnn, **failed))
    found = judged(runs)[f"attention, {shape}"]
    assert (found.verdict, found.found) == (verdict, told)


def test_a_kernel_that_is_wrong_meets_nothing() -> None:
    shape = "1 x 197, 12 x 64"
    wrong = {"status": "wrong", "reason": "error 1, budget 0.1"}
    runs = [kernels(row("attention", shape, ms=None, **wrong), row("attention", shape, "sdpa-flash"))]
    found = judged(runs)[f"attention, {shape}"]
    assert (found.verdict, found.found) == ("not measured", "wrong: error 1, budget 0.1")


def test_labels_are_timed_an_image() -> None:
    runs = [
        kernels(
            row("upsample_argmax", "1 x 150 x 32 x 32 to 512 x 512", ms=0.0101),
            row("upsample_argmax", "8 x 150 x 32 x 32 to 512 x 512", ms=0.0799),
        )
    ]
    one, eight = (judged(runs)[f"upsample_argmax, 150 classes, 512 x 512, batch {B}"] for B in (1, 8))
    assert (one.verdict, one.found) == ("missed", "10.1 us")
    assert (eight.verdict, eight.found) == ("met", "10.0 us")


def test_a_share_of_the_copy_and_of_what_bounds_it() -> None:
    runs = [
        kernels(
            row("add_layernorm", "8 x 1025 x 768"),
            row("patch_embed", "8 x 512 x 512 pixels to 768", tflops=640.0, gb_per_s=1200.0),
            row("mask_scores", "8 x 1024 x 384, 150 classes"),
            row("add_layernorm", "1 x 1025 x 768", gb_per_s=3816.0),
        )
    ]
    found = judged(runs)
    assert (found["add_layernorm, 8 x 1025 x 768"].verdict, found["add_layernorm, 8 x 1025 x 768"].found) == (
        "met",
        "90%",
    )
    assert found["add_layernorm, 1 x 1025 x 768"].found == "127%, more than PyTorch's copy"
    embed = found["patch_embed, 8 x 512 x 512 pixels to 768"]
    assert (embed.verdict, embed.found) == ("missed", "40%; 80% of its bound, which is the product")
    assert found["mask_scores, width 768"].verdict == "not measured"


def test_networks_are_compared_in_one_run() -> None:
    found = judged(
        [],
        network(8, gpu_sdpa=2.0, triton_fp16=1.0),
        network(8, gpu_sdpa=9.0, triton_fp16=1.0, triton_int8=0.7, triton_fp8=0.8, compiled_fp16=1.31),
        network(1, triton_fp16=1.0, compiled_fp16=None),
    )
    said = {what: (one.verdict, one.found) for what, one in found.items() if what.startswith("Seg-B")}
    assert said == {
        "Seg-B-Mask/16, triton-fp16, batch 8": ("met", "1.31 x"),
        "Seg-B-Mask/16, triton-int8, batch 8": ("met", "1.43 x"),
        "Seg-B-Mask/16, triton-fp8, batch 8": ("missed", "1.25 x"),
        "Seg-B-Mask/16, triton-fp16, batch 1": ("not measured", "failed: error 1"),
        "Seg-B-Mask/16, triton-int8, batch 1": ("not measured", ""),
        "Seg-B-Mask/16, triton-fp8, batch 1": ("not measured", ""),
    }


def test_a_later_failure_is_not_hidden_by_an_older_run_that_has_the_rival() -> None:
    both = network(8, triton_fp16=1.0, triton_int8=0.5, compiled_fp16=1.5)
    later = network(8, triton_fp16=1.0, triton_int8=None)
    later.runs[0]["created"] = "2026-01-02T03:05:05Z"
    found = judged([], later, both)
    failed, sound = (found[f"Seg-B-Mask/16, triton-{name}, batch 8"] for name in ("int8", "fp16"))
    assert (failed.verdict, failed.found) == ("not measured", "failed: error 1")
    assert (sound.verdict, sound.found) == ("met", "1.50 x")
    gone = network(8, compiled_fp16=None)
    gone.runs[0]["created"] = "2026-01-02T03:06:05Z"
    rival = judged([], gone, both, later)["Seg-B-Mask/16, triton-fp16, batch 8"]
    assert (rival.verdict, rival.found) == ("not measured", "failed: error 1")


def test_a_run_that_was_cut_hides_no_times() -> None:
    whole, cut = network(8, gpu_sdpa=2.0, triton_fp16=1.0), network(8, gpu_sdpa=2.0, triton_fp16=None)
    cut.runs[0]["rows"][1] |= {"status": "ok", "reason": None}
    later = cut.runs[0] | {"created": "2026-01-02T03:05:05Z"}
    section = Section(whole.model, [*whole.runs, later])
    assert [line.images_per_s for line in section.lines(8)] == [4000.0, 8000.0]
    later["rows"][1] |= {"status": "failed", "reason": "error 1"}
    assert [line.images_per_s for line in section.lines(8)] == [4000.0, None]


def test_rows_of_two_gpus_are_refused() -> None:
    ours = kernels(row("attention", "1 x 197, 12 x 64"))
    other = kernels(row("attention", "1 x 197, 12 x 64")) | {"model": {"name": "GPU 8000"}}
    told = r"different GPUs \(GPU 8000; GPU 9000\); make one report a machine"
    with pytest.raises(DataError, match=told):
        targets.targets([ours, other], [])
    with pytest.raises(DataError, match=told):
        targets.targets([other], [network(8, triton_fp16=1.0)])


def test_without_a_gpu_there_is_no_table_and_with_one_all_of_it(tmp_path: Path, capsys: Any) -> None:
    assert sheet([], sections([throughput_run()])) is None
    table = sheet([kernels_run()], [])
    assert table is not None
    assert len(table.lines) == 2 * 8 + 2 + 3 + 2 * 3
    assert table.hint == "0 met, 0 missed, 27 not measured."
    # a report of anyone's own runs has no table of what was promised of ours
    assert "Targets" not in page("title", [], "command", [kernels_run()])
    assert "Targets" not in markdown([], [kernels_run()])
    (tmp_path / RUNS).mkdir()
    (tmp_path / RUNS / "k.json").write_text(json.dumps(kernels_run()), encoding="utf-8")
    acceptance_page.main([str(tmp_path)])
    assert "<h3>Targets</h3>" in (tmp_path / PAGE).read_text(encoding="utf-8")
    text = (tmp_path / PAGE).with_suffix(".md").read_text(encoding="utf-8")
    assert "\n\n**Targets**" in text
    assert "| Seg-B-Mask/16, triton-fp16, batch 1 | 1.3 x compiled-fp16 | - | not measured |" in text
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "not measured: attention, 1 x 197, 12 x 64; wanted as fast as sdpa-cudnn and sdpa-flash"
    assert len(said) == 28


def test_a_folder_of_two_gpus_has_a_page_without_targets(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / RUNS).mkdir()
    for gpu in ("GPU 8000", "GPU 9000"):
        run = kernels_run() | {"model": {"name": gpu}}
        (tmp_path / RUNS / f"{gpu}.json").write_text(json.dumps(run), encoding="utf-8")
    assert acceptance_page.main([str(tmp_path)]) == 0
    assert "no targets: runs of different GPUs (GPU 8000; GPU 9000)" in capsys.readouterr().err
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "GPU 8000" in text
    assert "GPU 9000" in text
    assert "<h3>Targets</h3>" not in text
