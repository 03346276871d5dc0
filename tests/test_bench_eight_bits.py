"""`segmenter bench-eight-bits`: what 8 bits cost a network's labels, told without a GPU."""

import json
from pathlib import Path

import pytest

from segmenter.checkpoint import save_model
from segmenter.cli import main as segmenter
from segmenter.datasets.shapes import Shapes
from tests.networks import small_network

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(small_network(classes=Shapes("val", length=1).classes), folder)
    return folder


def test_every_choice_has_its_row(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choices = ("int8", "int8-scores", "fp8", "fp8-scores", "fp8-attention", "fp8-hopper", "fp8-hopper-128")
    path = tmp_path / "r.json"
    options = ["--limit", "2", "--choices", *choices, "--json", str(path)]
    assert segmenter(["bench-eight-bits", str(checkpoint), *options]) == 0
    printed = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["images"] == 2
    rows = {row.pop("name"): row for row in record["rows"]}
    assert tuple(rows) == ("fp32", *choices)
    assert rows["fp32"]["agreement"] == 1.0
    assert rows["fp32"]["sqnr_db"] is None
    for name in choices:
        assert f" {name} " in printed
        assert 0.8 < rows[name]["agreement"] < 1.0
        assert 0.0 < rows[name]["miou"] < 1.0
    # an operand in float8 has 31 dB, one in int8 with a scale a row 40: what two layers and an attention lose of them
    assert 25.0 < rows["int8"]["sqnr_db"] < 40.0
    assert 10.0 < rows["fp8"]["sqnr_db"] < 31.0
    assert rows["fp8-hopper"] == rows["fp8-hopper-128"]  # no layer here sums more than 128 products
    assert len({rows[name]["sqnr_db"] for name in choices[:-1]}) == len(choices) - 1


def test_what_cannot_be_judged_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_model(small_network(classes=("a", "b")), other)
    for arguments, complaint in (
        ([checkpoint, "--choices", "int4"], "int4"),
        ([checkpoint, "--threads", "0"], "--threads 0"),
        ([checkpoint, "--limit", "-1"], "--limit -1"),
        ([tmp_path / "none"], "none"),
        ([other], "knows 2 classes"),
        ([checkpoint, "--json", checkpoint], str(checkpoint)),
    ):
        assert segmenter(["bench-eight-bits", *map(str, arguments)]) == 2
        assert complaint in capsys.readouterr().err
