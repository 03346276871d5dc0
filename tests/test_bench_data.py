"""`segmenter bench-data`: its stages are training's, its counts are right, and it leaves a record."""

import json
from pathlib import Path

import numpy as np
import pytest

from segmenter.errors import VerificationError
from segmenter.training.options import AugmentOptions
from segmenter_bench import data
from segmenter_bench.data import main


def test_table_line_and_record(picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    options = ["--images", "7", "--batch", "2", "--crop", "32", "48", "--workers", "1", "--json", str(path)]
    assert main(["--dataset", "folder", "--data", str(picture_root), *options]) == 0
    out = capsys.readouterr().out
    record = json.loads(path.read_text())
    for stage in ("decode the image", "decode the mask", "draw, crop chosen", "resize and crop", "colours", "pad"):
        assert stage in out
        assert record["stages_ms"][stage] >= 0
    assert "folder train (56x40), crop 48x32, paper, 1 workers" in out
    assert f"{record['images_per_s']:.1f} images/s by the clock" in out
    assert record["cpu_ms"] > 0
    assert (record["augment"], record["crop"], record["data"]) == ("paper", [32, 48], str(picture_root))
    assert record["machine"]["cpu"]


def test_images_made_on_the_spot(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", "3", "--crop", "64", "64", "--workers", "0", "--batch", "2"]) == 0
    assert "make the image" in capsys.readouterr().out


def test_stages_that_are_not_trainings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "cut_labels", lambda labels, resized, box: np.zeros((8, 8), np.uint8))
    with pytest.raises(VerificationError, match="other pixels than training's"):
        data.measure(data.Options(images=2, augmentation=AugmentOptions(augment="none", crop=(8, 8))))


@pytest.mark.parametrize(
    ("option", "message"), [("--images=0", "--images 0: wanted at least 1"), ("--workers=-1", "--workers -1")]
)
def test_impossible_options(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 2
    assert message in capsys.readouterr().err
