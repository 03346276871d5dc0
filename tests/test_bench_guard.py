"""CI's guard of speed: today's engines against the committed run, and an engine made slow on purpose is found."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from segmenter.errors import DataError, VerificationError
from segmenter_bench import guard
from segmenter_bench.engines import Entry, choose
from segmenter_bench.guard import ENGINES, REFERENCE_RUN, comparable, fill, measured, require_as_fast
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


def test_a_reference_that_is_not_there_is_named_before_anything_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard.main(["--reference", str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 2
    assert "none.json: No such file" in capsys.readouterr().err
