"""`segmenter prepare-data`: what it says of each dataset, what it finds missing, and both conversions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter.datasets import DATASETS, open_dataset
from segmenter.datasets.convert import convert_cityscapes, convert_pascal_context
from segmenter.datasets.sources import SOURCES
from segmenter.errors import DataError
from segmenter.prepare_data import main


def save(path: Path, values: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for split, city in (("train", "aachen"), ("train", "zurich"), ("val", "munster")):
        name = f"{city}_000000_000019"
        save(tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", [[0] * 5])
        save(tmp_path / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", [[7, 33, 0, 29, 255]])
    return tmp_path


@pytest.fixture
def pascal(tmp_path: Path) -> Path:
    from scipy.io import savemat

    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "trainval").mkdir()
    for name, values in (
        ("2008_000002", [[427, 454, 1, 459]]),
        ("2009_000003", [[2, 458, 9, 23]]),
        ("2010_1", [[0] * 4]),
    ):
        save(tmp_path / "JPEGImages" / f"{name}.png", [[0] * 4])
        savemat(tmp_path / "trainval" / f"{name}.mat", {"LabelMap": np.array(values, np.uint16)})
    # VOC lists images in any order, and some that Pascal Context left out
    (lists / "train.txt").write_text("2009_000003\n2008_000002\n2008_999999\n", encoding="utf-8")
    (lists / "val.txt").write_text("2010_1\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "shapes"])
def test_every_dataset_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    out = capsys.readouterr().out
    for word in ("where:", "terms:", "size:", "conversion:", "folders:", "DIR"):
        assert word in out
    assert SOURCES[name].title in out


def test_what_is_missing_is_named(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["folder", str(picture_root)]) == 0
    out = capsys.readouterr().out
    assert "train 3 images with masks" in out
    assert f"every image has its mask; `segmenter check-data {picture_root} --dataset folder`" in out
    (picture_root / "masks" / "train" / "p1.png").unlink()
    for path in (picture_root / "images" / "val").iterdir():
        path.unlink()
    assert main(["folder", str(picture_root)]) == 1
    out = capsys.readouterr().out
    assert "train: 1 without a mask, the first " in out
    assert "images/train/p1.png" in out
    assert "val: " in out
    assert "images/val: holds no images" in out


def test_a_part_of_a_dataset_is_not_complete(cityscapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cityscapes", str(cityscapes)]) == 1
    out = capsys.readouterr().out
    assert "train 2 images with masks (the paper: 2,975)" in out
    assert "train: 2,973 images fewer than the paper's" in out


def test_glass_is_complete_with_all_its_images_and_temperatures_where_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        for image in ("0", "1"):
            save(tmp_path / split / "office" / image / "rgb.png", [[0, 0]])
            save(tmp_path / split / "office" / image / "mask.png", [[0, 255]])
            save(tmp_path / split / "office" / image / "thermal.png", [[1, 2]])
    source = replace(SOURCES["rgbt_glass"], images_in_all=4)
    for name in ("rgbt_glass", "rgbt_glass_thermal"):
        monkeypatch.setitem(SOURCES, name, source)
    assert main(["rgbt_glass_thermal", str(tmp_path)]) == 0
    (tmp_path / "test" / "office" / "1" / "thermal.png").unlink()
    assert main(["rgbt_glass", str(tmp_path)]) == 0
    assert f"{tmp_path}: complete; " in capsys.readouterr().out
    assert main(["rgbt_glass_thermal", str(tmp_path)]) == 1
    assert "val: 1 without temperatures, the first" in capsys.readouterr().out
    (tmp_path / "test" / "office" / "1" / "mask.png").unlink()
    assert main(["rgbt_glass", str(tmp_path)]) == 1
    assert "3 images of 4 in all; unpack the rest" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["rgbt_glass", str(tmp_path)]) == 1
    assert "3 images of 5,551 in all; unpack the rest" in capsys.readouterr().out


def test_cityscapes_masks_are_converted_once(cityscapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [open_dataset("cityscapes", cityscapes, split)[0].labels.tolist() for split in ("train", "val")]
    assert main(["cityscapes", str(cityscapes), "--convert"]) == 1  # converted, and still a part of the dataset
    assert "3 masks written" in capsys.readouterr().out
    path = cityscapes / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_labelTrainIds.png"
    np.testing.assert_array_equal(np.array(Image.open(path)), [[0, 18, 255, 255, 255]])
    assert [open_dataset("cityscapes", cityscapes, split)[0].labels.tolist() for split in ("train", "val")] == before
    path.unlink()
    assert convert_cityscapes(cityscapes) == 1
    save(path.with_name(path.name.replace("TrainIds", "Ids")), [[77] * 5])
    path.unlink()
    with pytest.raises(DataError, match=r"labelIds\.png: holds label 77"):
        convert_cityscapes(cityscapes)
    assert not path.exists()


def test_pascal_context_masks_and_lists_are_made(pascal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """427 is a screen and 454 a window in the list of 459; 1 and 459 are none of the 59."""
    assert main(["pascal_context", str(pascal), "--convert"]) == 1
    assert "3 masks written" in capsys.readouterr().out
    train = open_dataset("pascal_context", pascal, "train")
    assert [sample.name for sample in (train[0], train[1])] == ["2008_000002.png", "2009_000003.png"]
    assert train[0].labels.tolist() == [[55, 58, 0, 0]]
    assert [train.classes[label] for label in train[0].labels[0, :2]] == ["tvmonitor", "window"]
    assert [train.classes[label] for label in train[1].labels[0]] == ["aeroplane", "wood", "bag", "bicycle"]
    assert len(open_dataset("pascal_context_59", pascal, "val")) == 1
    assert convert_pascal_context(pascal) == 0


def test_pascal_context_lists_that_are_there_stay_and_say_what_is_converted(pascal: Path) -> None:
    lists = pascal / "ImageSets" / "SegmentationContext"
    lists.mkdir()
    (lists / "train.txt").write_text("2008_000002\n", encoding="utf-8")
    assert convert_pascal_context(pascal) == 2
    assert (lists / "train.txt").read_text(encoding="utf-8") == "2008_000002\n"
    assert (lists / "val.txt").read_text(encoding="utf-8") == "2010_1\n"
    masks = sorted(path.stem for path in (pascal / "SegmentationClassContext").iterdir())
    assert masks == ["2008_000002", "2010_1"]
    # VOC's own lists are not needed then
    (pascal / "ImageSets" / "Main" / "train.txt").unlink()
    assert convert_pascal_context(pascal) == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "trainval" / "2010_1.mat").write_bytes(b"no"), r"2010_1\.mat: not a \.mat file"),
        (lambda root: (root / "ImageSets/Main/val.txt").unlink(), r"val\.txt: cannot be read \(No such file"),
        (lambda root: [path.unlink() for path in (root / "trainval").iterdir()], r"trainval: has no \.mat file"),
    ],
)
def test_broken_pascal_context(pascal: Path, damage: object, message: str) -> None:
    damage(pascal)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        convert_pascal_context(pascal)


def test_values_pascal_context_has_not(pascal: Path) -> None:
    from scipy.io import savemat

    savemat(pascal / "trainval" / "2010_1.mat", {"LabelMap": np.array([[1, 460]], np.uint16)})
    with pytest.raises(DataError, match=r"2010_1\.mat: LabelMap is no picture of 0 to 459"):
        convert_pascal_context(pascal)


def test_mistakes_in_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cityscapes", "--convert"]) == 2
    assert "--convert: wanted the dataset's folder too" in capsys.readouterr().err
    assert main(["camvid", str(tmp_path), "--convert"]) == 2
    assert "camvid needs no conversion" in capsys.readouterr().err
    assert main(["cityscapes", str(tmp_path), "--convert"]) == 2
    assert "unpack gtFine_trainvaltest.zip there" in capsys.readouterr().err
    assert main(["coco"]) == 2
    assert "dataset 'coco': wanted one of folder, camvid" in capsys.readouterr().err
