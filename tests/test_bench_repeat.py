"""Runs repeated: the spread of each ratio over them, and what is past the limit."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from segmenter_bench import repeat as command
from segmenter_bench.acceptance_steps import RUNS
from segmenter_bench.repeat import ratios, spreads
from tests.bench_samples import throughput_run


def whole(folder: Path, int8: float) -> None:
    """What an acceptance run leaves of speed: one network at one batch."""
    (folder / RUNS).mkdir(parents=True)
    run = throughput_run(batches=(1,))
    for row in run["rows"]:
        if row["engine"] == "openvino-int8":
            row["ratio"]["median"] = int8
            row["others_busy"] = 0.25
    (folder / RUNS / "throughput-a.json").write_text(json.dumps(run), encoding="utf-8")


def test_the_spread_is_of_the_ratios_all_runs_have(tmp_path: Path) -> None:
    whole(tmp_path / "1", 8.0)
    whole(tmp_path / "2", 10.0)
    runs = [ratios(tmp_path / name) for name in ("1", "2")]
    key = ("Seg-S-Mask/14", "openvino-int8", 1, "labels")
    assert runs[0][key] == (8.0, 0.25)
    found = spreads(runs)
    assert next(iter(found.items())) == (key, 0.25)  # the largest first
    assert found["Seg-S-Mask/14", "openvino-fp32", 1, "labels"] == 0.0
    assert not any(engine == "official" for _, engine, _, _ in found)
    del runs[1][key]
    assert key not in spreads(runs)


@pytest.mark.parametrize(("second", "status"), [(8.4, 0), (10.0, 2)])
def test_the_command_exits_by_the_largest_spread(
    second: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def acceptance(arguments: list[str], **_: Any) -> Any:
        assert find_spec(arguments[2]) is not None  # in a checkout and of a wheel: `bench` is no package of that
        assert arguments[2].startswith("segmenter_bench.")
        folder = Path(arguments[arguments.index("--out") + 1])
        whole(folder, 8.0 if folder.name == "1" else second)
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
