"""`segmenter bench-data`: its stages are training's, its counts are right, and it leaves a record."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from segmenter.datasets import open_dataset
from segmenter.errors import VerificationError
from segmenter.training.data import Order
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


@pytest.mark.parametrize(("workers", "possible"), [(0, 8.0), (1, 8.0), (4, 32.0), (16, 128.0)])
def test_no_more_images_a_second_than_the_workers_can_make(
    workers: int, possible: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes a batch of eight a second, after it has started; those made meanwhile are none of the rate."""
    now = 0.0
    made: list[object] = []

    def loaded(samples: object, order: Order, workers: int) -> Iterator[tuple[list[int], None]]:
        nonlocal now
        for number, indices in enumerate(order):
            now = 3.0 + number // max(workers, 1) + 1.0
            made.append(indices)
            yield list(indices), None

    monkeypatch.setattr(data, "batches", loaded)
    monkeypatch.setattr(data, "time", SimpleNamespace(perf_counter=lambda: now))
    images_per_s, _ = data.rate(open_dataset("shapes", None, "train"), data.Options(images=40, workers=workers))
    assert images_per_s == possible
    assert len(made) >= 5 + 2 * 2 * workers  # and all are taken, so that no worker is left


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
