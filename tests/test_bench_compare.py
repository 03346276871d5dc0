"""Comparing two speed runs: real changes are told, noise is not, and runs that do not compare are named."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmenter.errors import DataError
from segmenter_bench import compare as command
from segmenter_bench.comparison import compare
from segmenter_bench.comparison_table import show
from segmenter_bench.sheets import quantity
from tests.bench_samples import miou_run, throughput_run

ROUNDS, CALLS = 12, 5


def timed_run(speeds: dict[str, float], noise: float, seed: int, drift: bool = False) -> dict[str, Any]:
    """A run whose machine slows down by the round where `drift`, the same for all engines of a round."""
    random = np.random.default_rng(seed)
    run = throughput_run(batches=(1,))
    run["rows"] = [row for row in run["rows"] if row["engine"] in speeds]
    machine = np.linspace(1.0, 2.0, ROUNDS) if drift else np.ones(ROUNDS)
    for row in run["rows"]:
        ms = 1000.0 / speeds[row["engine"]]
        jitter = np.exp(noise * random.standard_normal((ROUNDS, 1)))
        row["rounds_ms"] = (ms * machine[:, None] * jitter * np.ones((1, CALLS))).tolist()
    return run


SPEEDS = {"official": 2.0, "openvino-int8": 16.0, "onnxruntime-fp32": 5.0}


def verdicts(baseline: dict[str, Any], candidate: dict[str, Any], tolerance: float = 0.1) -> dict[str, str]:
    return {one.engine: one.verdict for one in compare(baseline, candidate, tolerance).changes}


def test_a_slower_engine_is_told_and_the_others_are_the_same() -> None:
    baseline = timed_run(SPEEDS, 0.03, seed=0)
    candidate = timed_run(SPEEDS | {"openvino-int8": 11.0}, 0.03, seed=1)
    assert verdicts(baseline, candidate) == {"openvino-int8": "slower", "onnxruntime-fp32": "same"}
    assert verdicts(candidate, baseline) == {"openvino-int8": "faster", "onnxruntime-fp32": "same"}


def test_a_machine_that_slows_down_changes_nothing() -> None:
    baseline, candidate = timed_run(SPEEDS, 0.03, seed=0), timed_run(SPEEDS, 0.03, seed=1, drift=True)
    assert set(verdicts(baseline, candidate).values()) == {"same"}


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_never_called_slower(seed: int) -> None:
    baseline, candidate = timed_run(SPEEDS, 0.3, seed), timed_run(SPEEDS, 0.3, 100 + seed)
    assert "slower" not in verdicts(baseline, candidate, tolerance=0.25).values()


def test_an_interval_wider_than_the_tolerance_is_unsure() -> None:
    baseline, candidate = timed_run(SPEEDS, 0.5, seed=0), timed_run(SPEEDS, 0.5, seed=1)
    assert set(verdicts(baseline, candidate, tolerance=0.02).values()) == {"unsure"}


def test_engines_of_one_run_alone_are_named() -> None:
    whole = timed_run(SPEEDS, 0.03, seed=0)
    part = timed_run({name: SPEEDS[name] for name in ("official", "onnxruntime-fp32")}, 0.03, seed=1)
    assert compare(whole, part, 0.1).apart == ["openvino-int8, batch 1: not timed in the candidate"]
    assert compare(part, whole, 0.1).apart == ["openvino-int8, batch 1: not timed in the baseline"]


def test_an_engine_that_broke_is_no_engine_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, broken = timed_run(SPEEDS, 0.03, seed=0), timed_run(SPEEDS, 0.03, seed=1)
    (row,) = (row for row in broken["rows"] if row["engine"] == "openvino-int8")
    row |= {"status": "failed", "reason": "9.00% of pixels agree"}
    found = compare(whole, broken, 0.1)
    assert (found.broken, found.apart) == (["openvino-int8, batch 1: 9.00% of pixels agree"], [])
    mended = compare(broken, whole, 0.1)
    assert (mended.broken, mended.apart) == ([], ["openvino-int8, batch 1: not timed in the baseline"])
    files = [str(tmp_path / name) for name in ("whole.json", "broken.json")]
    for path, run in zip(files, (whole, broken), strict=True):
        Path(path).write_text(json.dumps(run), encoding="utf-8")
    assert command.main(files) == 2
    assert "openvino-int8, batch 1: 9.00% of pixels agree" in capsys.readouterr().err


def test_an_engine_that_no_longer_opens_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, part = timed_run(SPEEDS, 0.03, seed=0), timed_run(SPEEDS, 0.03, seed=1)
    part["rows"] = [row for row in part["rows"] if row["engine"] != "openvino-int8"]
    part["unavailable"] = [{"engine": "openvino-int8", "reason": "the package openvino is not installed"}]
    told = "openvino-int8, batch 1: the package openvino is not installed"
    assert (compare(whole, part, 0.1).broken, compare(whole, part, 0.1).apart) == ([told], [])
    assert (compare(part, whole, 0.1).broken, len(compare(part, whole, 0.1).apart)) == ([], 1)
    assert command.main([*written(tmp_path, whole=whole, part=part)]) == 2
    assert told in capsys.readouterr().err


def written(folder: Path, **runs: dict[str, Any]) -> list[str]:
    for name, run in runs.items():
        (folder / f"{name}.json").write_text(json.dumps(run), encoding="utf-8")
    return [str(folder / f"{name}.json") for name in runs]


def slowed(run: dict[str, Any], **times: float) -> dict[str, Any]:
    """The run with engines, by their first word, taking so many times as long."""
    rows = [
        row
        | {
            "rounds_ms": [
                [times.get(row["engine"].split("-")[0], 1.0) * ms for ms in turn] for turn in row["rounds_ms"]
            ]
        }
        for row in run["rows"]
    ]
    return copy.deepcopy(run) | {"rows": rows}


def on_gpu(run: dict[str, Any]) -> dict[str, Any]:
    devices = {"openvino-int8": "GPU 9"}
    rows = [row | {"device": devices.get(row["engine"], "cpu"), "reference_device": "cpu"} for row in run["rows"]]
    return run | {"rows": rows}


def test_an_engine_on_another_device_than_the_reference_is_judged_by_its_own_ms(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = on_gpu(timed_run(SPEEDS, 0.03, seed=0))
    assert verdicts(run, slowed(run, official=0.67, onnxruntime=0.67))["openvino-int8"] == "same"
    both = compare(run, slowed(run, official=1.5, onnxruntime=1.5, openvino=1.5), 0.1)
    assert [(one.engine, one.verdict) for one in both.slower] == [("openvino-int8", "slower")]
    assert both.slower[0].change == pytest.approx(1 / 1.5)
    show(both)
    assert "by their own ms, as official ran on another device: openvino-int8 (batch 1)" in capsys.readouterr().out
    elsewhere = changed(run, "machine.gpus", [{"name": "another"}])
    found = compare(run, elsewhere, 0.1)
    assert [one.engine for one in found.changes] == ["onnxruntime-fp32"]
    assert found.unlike == [
        "openvino-int8, batch 1: not compared, ran on GPU 9, official on cpu: no ratio, and the milliseconds are of"
        " different machines"
    ]


def test_engines_are_not_blamed_for_a_reference_that_changed(capsys: pytest.CaptureFixture[str]) -> None:
    run = timed_run(SPEEDS, 0.03, seed=0)
    sooner = compare(run, slowed(run, official=0.6), 0.1)
    assert {one.verdict for one in sooner.changes} == {"unsure: the reference changed"}
    assert verdicts(slowed(run, official=0.6), run)["openvino-int8"] == "unsure: the reference changed"
    show(sooner)
    printed = capsys.readouterr().out
    assert re.search(r"official, the reference, batch 1, labels: \S+ ms, now \S+: 0\.60 times as long", printed)
    assert printed.splitlines()[-1].startswith(
        "unsure: onnxruntime-fp32 (batch 1), openvino-int8 (batch 1); an interval knows"
    )
    # it became slower itself as well, or the machine is another, of which other speeds are expected
    assert verdicts(run, slowed(run, official=0.6, openvino=1.3))["openvino-int8"] == "slower"
    other = changed(slowed(run, official=0.6), "machine.cpu.flags", ["avx2"])
    assert verdicts(run, other)["openvino-int8"] == "slower"


def test_what_else_differs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = timed_run(SPEEDS, 0.03, seed=0)
    assert compare(run, run, 0.1).differences == []
    other = changed(run, "machine.versions", {"torch": "2.14.0", "onnxruntime": "1.32.0", "openvino": "2026.1"})
    other["machine"]["git"] = {"commit": "fedcba9876543210", "dirty": False}
    other["machine"]["cpu"]["flags"] = ["avx512_bf16"]
    other["rows"][0]["others_busy"] = 0.12
    show(compare(run, other, 0.1))
    printed = capsys.readouterr().out
    for line in (
        "commit: 0123456 with local changes, now fedcba9",
        "openvino: none, now 2026.1",
        "torch: 2.13.0, now 2.14.0",
        "instructions of one run alone: avx512_vnni",
        "other programs took up to 12% of the cores in the candidate",
    ):
        assert line in printed
    assert "onnxruntime: " not in printed
    row = next(line for line in printed.splitlines() if "openvino-int8" in line)
    ms = float(np.median(next(one for one in run["rows"] if one["engine"] == "openvino-int8")["rounds_ms"]))
    assert row.split()[3:5] == [quantity(ms, 4)] * 2


def changed(run: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    other = copy.deepcopy(run)
    *parents, last = path.split(".")
    place = other
    for key in parents:
        place = place[key]
    place[last] = value
    return other


def test_runs_that_do_not_compare_are_named() -> None:
    run = timed_run(SPEEDS, 0.03, seed=0)
    for path, value, message in (
        ("model.name", "other", "network 'Seg-S-Mask/14' in the baseline and 'other' in the candidate"),
        ("model.height", 512, "height 360 in the baseline and 512"),
        ("model.trained", False, "trained True in the baseline and False"),
        ("model.classes", ["sky"], "number of classes 7 in the baseline and 1 in the candidate"),
        ("timed.labels", "files to files", "timed as labels: 'uint8 images to uint8 labels"),
        ("settings.threads", 1, "threads 8 in the baseline and 1"),
        ("settings.reference", "eager", "reference 'official' in the baseline and 'eager'"),
        ("kind", "miou", "candidate: a miou run"),
        ("rows", [], "official, which speeds are measured against, was not timed"),
    ):
        with pytest.raises(DataError, match=message):
            compare(run, changed(run, path, value), 0.1)
    with pytest.raises(DataError, match="candidate: a miou run; wanted the JSON of bench-throughput"):
        compare(run, miou_run(), 0.1)
    with pytest.raises(DataError, match="baseline: a miou run"):
        compare(miou_run(), run, 0.1)
    short = copy.deepcopy(run)
    for row in short["rows"]:
        row["rounds_ms"] = row["rounds_ms"][:2]
    with pytest.raises(DataError, match=r"has 2 rounds; wanted at least 3.*--rounds 6"):
        compare(run, short, 0.1)


def test_timings_with_the_cores_another_distance_apart_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near, far, unknown = timed_run(SPEEDS, 0.03, seed=0), timed_run(SPEEDS, 0.03, seed=1), timed_run(SPEEDS, 0.03, 2)
    for run, ns in ((near, 57.0), (far, 250.0)):
        for row in run["rows"]:
            row["core_to_core_ns"] = ns
    found = compare(near, far, 0.1)
    assert found.changes == []
    assert "not compared, a cache line took 57 ns from core to core in the baseline and 250 ns" in found.unlike[0]
    assert compare(near, unknown, 0.1).changes  # of before it was read
    both = copy.deepcopy(far)
    for row, other in zip(both["rows"], near["rows"], strict=True):
        row["other_placements"] = [other]
    assert {one.change for one in compare(near, both, 0.1).changes} == {1.0}
    moving = changed(near, "rows", [row | {"core_to_core_ns": None, "cores_moved": True} for row in near["rows"]])
    assert "57 ns from core to core in the baseline and now more, now less" in compare(near, moving, 0.1).unlike[0]
    few = changed(
        near,
        "rows",
        [
            far_row if row["engine"] == "openvino-int8" else row
            for row, far_row in zip(near["rows"], far["rows"], strict=True)
        ],
    )
    for name, run in (("near", near), ("few", few)):
        (tmp_path / f"{name}.json").write_text(json.dumps(run), encoding="utf-8")
    assert command.main([str(tmp_path / "near.json"), str(tmp_path / "few.json")]) == 2
    assert "engines were not compared, see above; time them again" in capsys.readouterr().err


def test_the_command_exits_by_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {}
    for name, speed, seed in (("a", 16.0, 0), ("b", 16.0, 1), ("c", 8.0, 2)):
        files[name] = str(tmp_path / f"{name}.json")
        run = timed_run(SPEEDS | {"openvino-int8": speed}, 0.03, seed)
        Path(files[name]).write_text(json.dumps(run), encoding="utf-8")
    assert command.main([files["a"], files["b"]]) == 0
    printed = capsys.readouterr().out
    assert "same" in printed
    assert "interval of these rounds" in printed
    assert "95%" not in printed
    assert command.main([files["a"], files["c"]]) == 2
    captured = capsys.readouterr()
    assert "openvino-int8 0.49x (batch 1)" in captured.err
    assert command.main([files["a"], files["c"], "--tolerance", "2"]) == 0
    capsys.readouterr()
    assert command.main([files["a"], files["b"], "--tolerance", "0"]) == 2
    assert "--tolerance 0.0: wanted above 0" in capsys.readouterr().err
    assert command.main([files["a"], str(tmp_path / "none.json")]) == 2
    assert "none.json: No such file" in capsys.readouterr().err
