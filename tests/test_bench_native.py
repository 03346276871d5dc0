"""bench-native: three ways to one network, compared before they are timed."""

import json
from pathlib import Path

import pytest

from segmenter_bench.placement import Placement
from segmenter_engines.folder import FP32
from tests.sdk import call

pytest.importorskip("openvino", reason="openvino is not installed")
native = pytest.importorskip("segmenter_bench.native", reason="segmenter_trt is not compiled; run pip install .")
pytestmark = pytest.mark.slow


def test_all_three_are_timed(
    sdk: Path, engine_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, engine, path = sdk / "bin" / "segmenter_trt_cli", engine_folder / FP32, tmp_path / "r.json"
    arguments = ("--engine", str(engine), "--threads", "1", "--rounds", "2", "--calls", "5", "--json", str(path))
    assert native.main([*arguments, "--program", str(program)]) == 0
    assert {name: len(each) for name, each in json.loads(path.read_text())["p50_ms_by_round"].items()} == {
        native.PYTHON: 2,
        native.MODULE: 2,
        native.PROGRAM: 2,
    }
    shown = capsys.readouterr().out
    assert "72x56, 1 threads, 2 rounds of 5 calls" in shown
    assert all(name in shown for name in (native.PYTHON, native.MODULE, native.PROGRAM))


def test_rounds_of_the_nearest_cores_count(capsys: pytest.CaptureFixture[str]) -> None:
    options = native.Options(engine=Path("a.onnx"), program=Path("b"), rounds=4)
    ms = {native.PYTHON: [50.0, 10.0, 10.0, 50.0], native.MODULE: [50.0, 5.0, 5.0, 90.0]}
    native.report(options, ms, Placement((1, 2), 57.0, moved=True), "how")
    shown = capsys.readouterr().out
    assert "the cores moved meanwhile: 2 rounds count, in which they were the nearest" in shown
    assert "2.000 (2.000 to 2.000)" in shown
    native.report(options, ms, Placement((0, 1, 2, 3), None, moved=True), "how")
    assert "too few rounds are of one distance: all count" in capsys.readouterr().out
    native.report(options, ms, Placement((0, 1, 2, 3), 57.0), "how")
    assert "moved" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["rounds", "calls", "threads"])
def test_counts_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert native.main(["--engine", "a.onnx", "--program", "b", f"--{option}", "0"]) == 2
    assert f"--{option} 0: wanted at least 1" in capsys.readouterr().err


def test_other_labels_are_not_timed(
    sdk: Path, engine_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a program that labels what is not its picture
    program = tmp_path / "program"
    real, other = sdk / "bin" / "segmenter_trt_cli", tmp_path / "picture.ppm"
    other.write_bytes(b"P6\n72 56\n255\n" + bytes(72 * 56 * 3))
    assert call(real, engine_folder / FP32, other, "--out", tmp_path).returncode == 0
    program.write_text(f'#!/bin/sh\nengine=$1; shift 2; exec {real} "$engine" {other} "$@"\n')
    program.chmod(0o755)
    arguments = ("--engine", str(engine_folder / FP32), "--program", str(program), "--threads", "1")
    assert native.main(arguments) == 2
    assert "segmenter_trt_cli: other labels than the python session" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("#!/bin/sh\nexit 0\n", "wrote no labels; pass segmenter_trt_cli"),
        ("#!/bin/sh\nexit 3\n", "ended with status 3 and said nothing; pass segmenter_trt_cli"),
        ("#!/bin/sh\necho error: no such engine >&2; exit 1\n", "error: no such engine"),
    ],
)
def test_a_program_that_is_another_is_named(
    program: str, complaint: str, engine_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.write_text(program)
    other.chmod(0o755)
    assert native.main(["--engine", str(engine_folder / FP32), "--program", str(other), "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert complaint in error
