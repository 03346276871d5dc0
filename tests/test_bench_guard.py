"""CI's guard of speed: today's engines against the committed run, and an engine made slow on purpose is found."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segmenter.errors import DataError, VerificationError
from segmenter_bench import guard
from segmenter_bench.engines import Entry, choose
from segmenter_bench.guard import ENGINES, REFERENCE_RUN, comparable, fill, measured, require_as_fast
from segmenter_bench.machine import BUSY
from segmenter_bench.runs import read_run
from segmenter_engines.folder import FP32
from tests.bench_fakes import Slowed

TOLERANCE = guard.Options().tolerance


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every engine of the guard and, in the same rounds, ONNX Runtime's working several times as long."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("openvino", reason="openvino is not installed")
    folder = tmp_path_factory.mktemp("guard")
    fill(folder)
    slowed = Entry("slowed", FP32, "onnxruntime", "fp32", opener="tests.bench_fakes:open_slowed")
    root = str(Path(__file__).resolve().parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        return measured(folder, [*choose(ENGINES), slowed], "a test")


def with_rows(run: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return copy.deepcopy(run) | {"rows": rows}


@pytest.mark.slow
def test_no_engine_is_slower_than_in_the_committed_run(run: dict[str, Any]) -> None:
    assert [row["engine"] for row in run["rows"] if row["status"] != "ok"] == []
    ours = with_rows(run, [row for row in run["rows"] if row["engine"] != "slowed"])
    require_as_fast(read_run(REFERENCE_RUN), ours, TOLERANCE)


@pytest.mark.slow
def test_an_engine_that_became_slow_is_found(run: dict[str, Any]) -> None:
    assert Slowed.times > 1 + TOLERANCE  # what it takes to fail
    rows = [row for row in run["rows"] if row["engine"] != "onnxruntime-fp32"]
    slow = [row | {"engine": "onnxruntime-fp32"} if row["engine"] == "slowed" else row for row in rows]
    with pytest.raises(
        VerificationError, match=r"^slower than the committed run, both against official: onnx\S+-fp32 0"
    ):
        require_as_fast(read_run(REFERENCE_RUN), with_rows(run, slow), TOLERANCE)


def test_the_committed_run_says_where_it_was_made_and_holds_every_engine() -> None:
    reference = read_run(REFERENCE_RUN)
    assert {row["engine"] for row in reference["rows"]} == {row.name for row in choose(ENGINES)}
    assert all(row["status"] == "ok" and len(row["rounds_ms"]) == guard.PACE.rounds for row in reference["rows"])
    assert reference["machine"]["cpu"]["model"]
    assert reference["machine"]["versions"]["onnxruntime"]
    assert reference["machine"]["git"]["commit"]
    guard.require_renewable(reference)


def test_engines_of_other_instructions_compare_in_fp32_alone() -> None:
    reference = read_run(REFERENCE_RUN)
    assert comparable(reference, reference) == (reference, reference)
    other = copy.deepcopy(reference)
    other["machine"]["cpu"]["flags"] = ["avx2"]
    for side in comparable(reference, other):
        assert {row["precision"] for row in side["rows"]} == {"fp32"}
    require_as_fast(reference, other, TOLERANCE)


def test_what_broke_or_is_not_there_is_no_pass() -> None:
    reference = read_run(REFERENCE_RUN)
    broken = copy.deepcopy(reference)
    next(row for row in broken["rows"] if row["engine"] == "onnxruntime-fp32").update(
        status="failed", reason="no labels"
    )
    with pytest.raises(VerificationError, match="onnxruntime-fp32, batch 1: no labels"):
        require_as_fast(reference, broken, TOLERANCE)
    alone = with_rows(reference, [row for row in reference["rows"] if row["engine"] == "official"])
    with pytest.raises(DataError, match="nothing was compared"):
        require_as_fast(reference, alone, TOLERANCE)


def without(run: dict[str, Any], engine: str) -> dict[str, Any]:
    """The run as where an engine cannot be opened."""
    unavailable = [{"engine": engine, "reason": "no such library"}]
    return with_rows(run, [row for row in run["rows"] if row["engine"] != engine]) | {"unavailable": unavailable}


@pytest.mark.parametrize("flags", [None, ["avx2"]])
def test_an_engine_that_cannot_be_opened_is_no_pass(flags: list[str] | None) -> None:
    """Whatever the instructions are, which excuse another speed alone."""
    reference = read_run(REFERENCE_RUN)
    for engine in ("onnxruntime-fp32", "openvino-int8"):
        candidate = without(reference, engine)
        if flags:
            candidate["machine"]["cpu"]["flags"] = flags
        with pytest.raises(VerificationError, match=f"{engine}, batch 1: no such library"):
            require_as_fast(reference, candidate, TOLERANCE)


@pytest.mark.parametrize("tolerance", ["nan", "-1", "-0.5", "0", "inf"])
def test_a_tolerance_that_tells_nothing_is_refused_before_anything_is_timed(
    tolerance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "fill", lambda folder: pytest.fail("work was begun"))
    assert guard.main(["--tolerance", tolerance, "--out", str(tmp_path)]) == 2
    assert "wanted above 0 and at most 10" in capsys.readouterr().err


def quiet() -> dict[str, Any]:
    """The committed run as a quiet machine and a clean checkout would have made it."""
    run = read_run(REFERENCE_RUN)
    run["machine"]["git"]["dirty"] = False
    run["unavailable"] = []
    return with_rows(run, [row | {"others_busy": BUSY} for row in run["rows"]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: run["rows"][2].update(others_busy=0.83), "others took up to 83% of the cores, wanted at most 5%"),
        (lambda run: run["machine"]["git"].update(dirty=True), "wanted a checkout without local changes"),
        (lambda run: run["machine"].update(git=None), "wanted a checkout without local changes"),
        (lambda run: run["rows"][1].update(status="failed"), "failed or cannot run here"),
    ],
)
def test_no_reference_is_made_of_a_busy_machine_or_of_local_changes(
    spoil: Callable[[dict[str, Any]], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = quiet()
    monkeypatch.setattr(guard, "fill", lambda folder: None)
    monkeypatch.setattr(guard, "measured", lambda *_: run)
    reference = tmp_path / "reference.json"
    command = ["--renew", "--reference", str(reference), "--out", str(tmp_path / "out")]
    assert guard.main(command) == 0
    assert read_run(reference)["rows"]
    reference.unlink()
    spoil(run)
    assert guard.main(command) == 2
    error = capsys.readouterr().err
    assert "not renewed: " in error
    assert message in error
    assert not reference.exists()


def test_a_slower_engine_of_another_version_is_told_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    reference, other = read_run(REFERENCE_RUN), read_run(REFERENCE_RUN)
    row = next(row for row in other["rows"] if row["engine"] == "onnxruntime-fp32")
    row["rounds_ms"] = [[4 * ms for ms in turn] for turn in row["rounds_ms"]]
    with pytest.raises(VerificationError, match="slower than the committed run"):
        require_as_fast(reference, other, TOLERANCE)
    other["machine"]["versions"]["onnxruntime"] = "9.9"
    require_as_fast(reference, other, TOLERANCE)
    told = capsys.readouterr().err
    assert f"other versions: onnxruntime 9.9 (then {reference['machine']['versions']['onnxruntime']}); slower" in told


def test_a_reference_that_is_not_there_is_named_before_anything_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard.main(["--reference", str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 2
    assert "none.json: No such file" in capsys.readouterr().err
