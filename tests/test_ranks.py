"""Processes that share an evaluation: every number is that of one process, and each image is in one share."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed import HashStore

from segmenter.checkpoint import save_model
from segmenter.config import SegmenterConfig
from segmenter.datasets.shapes import Shapes
from segmenter.errors import ConfigError
from segmenter.evaluate import main
from segmenter.model import Segmenter
from segmenter.ranks import EveryNth, LostRank, Ranks, joined
from tests.training.ranks import run_ranks

EVALUATE = "segmenter.evaluate"


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_each_image_is_in_one_share(count: int) -> None:
    data = Shapes("val", length=7)
    shares = [Ranks("cpu", rank, count).share(data) for rank in range(count)]
    names = [sample.name for share in shares for sample in (share[index] for index in range(len(share)))]
    assert sorted(names) == sorted(data[index].name for index in range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for share in shares:
        assert (share.classes, share.palette, share.ignore, share.channels) == (
            (data.classes, data.palette, data.ignore, data.channels)
        )
        with pytest.raises(IndexError):
            share[len(share)]


def test_one_process_exchanges_nothing() -> None:
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.count, ranks.device, ranks.first) == (0, 1, "cpu", True)
        assert not isinstance(ranks.share(Shapes("val")), EveryNth)
        counts = np.arange(4)
        ranks.sum_counts(counts)
        assert counts.tolist() == [0, 1, 2, 3]
        assert ranks.largest(3.0, -1.0) == (3.0, -1.0)
        assert ranks.gathered([1.5]) == [1.5]


def test_one_process_computes_on_the_gpu_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[str] = []
    monkeypatch.setattr("segmenter.ranks.pick_device", lambda name: name)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("cuda:1", "cuda", "cpu"):
        with joined(name) as ranks:
            assert ranks.device == name
    assert current == ["cuda:1"]


@pytest.mark.parametrize(
    ("here", "told"),
    [
        ((0, 1, 3), r"^rank 2 of 4 \(process 12\) ended before its time"),
        (
            (0, 3),
            r"rank 1 of 4 \(process 11\), rank 2 of 4 \(process 12\) do not answer, and one of them at least",
        ),
    ],
)
def test_of_several_that_do_not_answer_one_has_ended(
    here: tuple[int, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HashStore()
    for rank in range(4):
        store.set(f"who/{rank}", f"process {10 + rank}")
    for rank in here:
        store.set(f"here/{rank}", "")
    monkeypatch.setattr("segmenter.ranks._PATIENCE_S", 0.0)
    with pytest.raises(LostRank, match=told), Ranks("cpu", 0, 4, store).exchanging():
        raise RuntimeError("gloo: connection closed by peer")


def test_one_gpu_for_many_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmenter.ranks.pick_device", lambda name: name)
    monkeypatch.setenv("LOCAL_RANK", "1")
    from segmenter.ranks import _own_device

    assert _own_device("cpu") == "cpu"
    assert _own_device("cuda") == "cuda:1"
    with pytest.raises(ConfigError, match="--device cuda:0: every process would take it"):
        _own_device("cuda:0")


# of one image nothing is left for the second process
@pytest.mark.parametrize(
    ("classes", "limit"),
    [(("ground", "wall", "sky"), 0), (("ground", "wall"), 0), (("ground", "wall"), 1)],
    ids=["three classes", "two", "one image"],
)
def test_two_processes_judge_as_one(
    classes: tuple[str, ...], limit: int, picture_root: Path, tiny_config: SegmenterConfig, tmp_path: Path
) -> None:
    if len(classes) == 2:
        (picture_root / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
        for path in (picture_root / "masks").rglob("*.png"):
            mask = np.array(Image.open(path))
            Image.fromarray(np.where(mask == 2, 255, mask).astype(np.uint8)).save(path)
    save_model(Segmenter(replace(tiny_config, classes=classes, palette=())), tmp_path / "network")
    options = ["--checkpoint", str(tmp_path / "network"), "--dataset", "folder", "--data", str(picture_root)]
    options += ["--split", "train", "--device", "cpu", "--details", "--json"]
    options = ["--limit", str(limit), *options]
    assert main([*options, str(tmp_path / "one.json")]) == 0
    assert run_ranks(2, [*options, str(tmp_path / "two.json")], tmp_path, EVALUATE) == [0, 0]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert ("mae" in one) is (len(classes) == 2)
    assert "mIoU" in (tmp_path / "0").read_text()
    assert (tmp_path / "1").read_text() == ""


def test_an_image_that_cannot_be_read_ends_all(
    picture_root: Path, tiny_config: SegmenterConfig, tmp_path: Path
) -> None:
    save_model(Segmenter(tiny_config), tmp_path / "network")
    (picture_root / "images" / "train" / "p1.png").write_bytes(b"no picture")
    options = ["--checkpoint", str(tmp_path / "network"), "--dataset", "folder", "--data", str(picture_root)]
    options += ["--split", "train", "--device", "cpu"]
    assert run_ranks(2, options, tmp_path, EVALUATE) == [2, 2]
    (line,) = [one for rank in "01" for one in (tmp_path / rank).read_text().splitlines() if "error:" in one]
    assert "p1.png" in line
