"""Runs repeated: the spread of each ratio over them, and what is past the limit."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from segmenter_bench import repeat as command
from segmenter_bench.acceptance_steps import RUNS
from segmenter_bench.repeat import Measured, ratios, spreads
from tests.bench_samples import throughput_run

KEY = ("Seg-S-Mask/14", "openvino-int8", 1, "labels")


def whole(folder: Path, *int8: tuple[float, float | None]) -> None:
    """What an acceptance run leaves of speed: one network at one batch, a ratio for each distance the cores had."""
    (folder / RUNS).mkdir(parents=True, exist_ok=True)
    run = throughput_run(batches=(1,))
    for row in run["rows"]:
        if row["engine"] in ("openvino-int8", "official"):
            of_int8 = row["engine"] == "openvino-int8"
            own, *others = (
                {
                    "core_to_core_ns": ns,
                    "rounds_ms": [[1.0]] * 6,
                    "timing": row["timing"],
                    "ratio": (row["ratio"] | {"median": median}) if of_int8 else row["ratio"],
                }
                for median, ns in int8
            )
            row |= own | {"other_placements": others, "others_busy": 0.25 if of_int8 else 0.0}
    (folder / RUNS / "throughput-a.json").write_text(json.dumps(run), encoding="utf-8")


def test_the_spread_is_of_the_ratios_all_runs_have(tmp_path: Path) -> None:
    whole(tmp_path / "1", (8.0, None))
    whole(tmp_path / "2", (10.0, None))
    runs = [ratios(tmp_path / name) for name in ("1", "2")]
    assert runs[0][KEY] == [Measured(8.0, None, 0.25)]
    found, apart = spreads(runs, 2)
    assert (found[0].key, found[0].spread) == (KEY, 0.25)  # the largest first
    assert next(one for one in found if one.key[1] == "openvino-fp32").spread == 0.0
    assert not any(one.key[1] == "official" for one in found)
    assert apart == []
    del runs[1][KEY]
    assert KEY not in [one.key for one in spreads(runs, 2)[0]]
    assert spreads(runs, 2)[1] == [KEY]
    # a third run without it hides nothing of two that have it
    assert spreads([runs[0], {KEY: [Measured(10.0, None, 0.0)]}, {}], 2)[0][0].spread == 0.25


def test_ratios_compare_where_the_cores_were_equally_far_apart(tmp_path: Path) -> None:
    whole(tmp_path / "1", (10.0, 250.0), (12.0, 57.0))
    whole(tmp_path / "2", (12.6, 60.0))
    whole(tmp_path / "3", (9.0, 245.0))
    runs = [ratios(tmp_path / name) for name in ("1", "2", "3")]
    assert [one.core_to_core_ns for one in runs[0][KEY]] == [250.0, 57.0]
    (near,) = [one for one in spreads(runs, 2)[0] if one.key == KEY]
    assert near.measured == (runs[0][KEY][1], runs[1][KEY][0], None)
    assert near.spread == pytest.approx(0.05)
    (far,) = [one for one in spreads(runs[::2], 2)[0] if one.key == KEY]
    assert far.spread == pytest.approx(1 / 9)
    assert spreads(runs[1:], 2)[1] == [KEY]
    unknown = {KEY: [Measured(10.0, None, 0.0)]}
    (known,) = spreads([unknown, {KEY: [Measured(12.0, 57.0, 0.0)]}, {KEY: [Measured(12.1, 58.0, 0.0)]}], 2)[0]
    assert known.measured[1:] == (Measured(12.0, 57.0, 0.0), Measured(12.1, 58.0, 0.0))


def test_a_step_that_was_measured_again_counts_once(tmp_path: Path) -> None:
    whole(tmp_path, (8.0, 57.0))
    old = tmp_path / RUNS / "throughput-a.json"
    old.rename(old.with_name("throughput-a-20260101T000000.json"))
    whole(tmp_path, (9.0, 57.0))
    old.rename(old.with_name("throughput-a-20260102T000000.json"))
    assert ratios(tmp_path)[KEY] == [Measured(9.0, 57.0, 0.25)]


def test_a_run_more_is_made_where_no_two_had_the_cores_equally_far_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"1": (10.0, 250.0), "2": (12.0, 57.0), "3": (12.3, 58.0), "4": (1.0, 250.0)}

    def acceptance(arguments: list[str], **_: Any) -> Any:
        folder = Path(arguments[arguments.index("--out") + 1])
        whole(folder, made[folder.name])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(command.subprocess, "run", acceptance)
    assert command.main(["--out", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "openvino-int8" in line]
    assert line.split()[-7:] == ["57", "ns", "-", "12.00", "12.30", "2.5%", "25%"]
    assert not (tmp_path / "4").exists()
    made["3"] = (11.0, 900.0)
    assert command.main(["--out", str(tmp_path / "b")]) == 2
    told = capsys.readouterr().err
    assert "wanted 2 runs with the cores equally far apart, and found fewer of openvino-int8 of Seg-S-Mask/14" in told


@pytest.mark.parametrize(("second", "status"), [(8.4, 0), (10.0, 2)])
def test_the_command_exits_by_the_largest_spread(
    second: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def acceptance(arguments: list[str], **_: Any) -> Any:
        assert find_spec(arguments[2]) is not None  # in a checkout and of a wheel: `bench` is no package of that
        assert arguments[2].startswith("segmenter_bench.")
        folder = Path(arguments[arguments.index("--out") + 1])
        whole(folder, (8.0 if folder.name == "1" else second, None))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(command.subprocess, "run", acceptance)
    assert command.main(["--out", str(tmp_path), "--folder", "m"]) == status
    told = capsys.readouterr()
    assert f"{second:.2f}" in told.out
    assert ("openvino-int8 of Seg-S-Mask/14 25.0%" in told.err) is bool(status)


def test_a_run_that_is_not_whole_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 1}))
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "report.html: not whole, see its steps" in capsys.readouterr().err
    assert command.main(["--out", str(tmp_path), "--times", "1"]) == 2
    assert "--times 1: wanted at least 2" in capsys.readouterr().err
