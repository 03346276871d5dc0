"""The paper's datasets in their own layouts: tiny copies on disk, read back with every label conversion."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter.check_data import main as check_data
from segmenter.datasets import classes_of, open_dataset
from segmenter.errors import DataError


def write(path: Path, values: list[int]) -> None:
    """A picture of one row of the given values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values], np.uint8)).save(path)


def cityscapes(root: Path, kind: str, values: list[int]) -> None:
    for split, city in (("train", "aachen"), ("train", "zurich"), ("val", "munster")):
        name = f"{city}_000000_000019"
        write(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", [0] * len(values))
        write(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", values)
        write(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", [77] * len(values))


def pascal(root: Path, values: list[int]) -> None:
    for name in ("2008_000001", "2008_000002", "2009_000003", "2010_000004"):
        write(root / "JPEGImages" / f"{name}.png", [0] * len(values))
        write(root / "SegmentationClassContext" / f"{name}.png", values)
    lists = root / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2009_000003\n2008_000001\n", encoding="utf-8")
    (lists / "val.txt").write_text("2010_000004\n", encoding="utf-8")


def glass(root: Path, values: list[int]) -> None:
    for split in ("train", "test"):
        for scene, image in (("office_1", "0"), ("office_1", "1"), ("noglass_2", "0")):
            write(root / split / scene / image / "rgb.png", [0] * len(values))
            write(root / split / scene / image / "mask.png", values)
            write(root / split / scene / image / "boundary.png", [1] * len(values))
            np.save(root / split / scene / image / "temperature.npy", np.linspace(19.5, 27.5, len(values))[None])


CITYSCAPES_IDS = [0, 6, 7, 8, 9, 11, 12, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 255]
CITYSCAPES_TRAIN_IDS = [
    255,
    255,
    0,
    1,
    255,
    2,
    3,
    4,
    5,
    255,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    255,
    255,
    16,
    17,
    18,
    255,
]


@pytest.mark.parametrize(
    ("name", "make", "labels", "count", "first"),
    [
        (
            "cityscapes",
            lambda root: cityscapes(root, "labelIds", CITYSCAPES_IDS),
            CITYSCAPES_TRAIN_IDS,
            2,
            "aachen/aachen_000000_000019_leftImg8bit.png",
        ),
        (
            "cityscapes",
            lambda root: cityscapes(root, "labelTrainIds", [0, 18, 255]),
            [0, 18, 255],
            2,
            "aachen/aachen_000000_000019_leftImg8bit.png",
        ),
        ("pascal_context", lambda root: pascal(root, [0, 1, 59, 255]), [0, 1, 59, 255], 2, "2009_000003.png"),
        ("pascal_context_59", lambda root: pascal(root, [0, 1, 59, 255]), [255, 0, 58, 255], 2, "2009_000003.png"),
        ("rgbt_glass", lambda root: glass(root, [0, 255]), [0, 1], 3, "noglass_2/0/rgb.png"),
        ("rgbt_glass_thermal", lambda root: glass(root, [0, 255]), [0, 1], 3, "noglass_2/0/rgb.png"),
    ],
)
def test_labels_are_converted(
    name: str, make: Callable[[Path], None], labels: list[int], count: int, first: str, tmp_path: Path
) -> None:
    make(tmp_path)
    dataset = open_dataset(name, tmp_path, "train")
    assert len(dataset) == count
    assert dataset[0].name == first
    for index in range(count):
        np.testing.assert_array_equal(dataset[index].labels, [labels])
    assert len(open_dataset(name, tmp_path, "val")) in (1, 3)
    assert classes_of(name) == (dataset.classes, dataset.palette)
    assert len(set(dataset.palette)) >= len(dataset.palette) - 1  # ADE20K gives one colour twice
    assert check_data([str(tmp_path), "--dataset", name]) == 0


@pytest.mark.parametrize(("name", "count"), [("cityscapes", 19), ("pascal_context", 60), ("pascal_context_59", 59)])
def test_there_are_as_many_classes_as_the_benchmark_judges(name: str, count: int) -> None:
    classes, palette = classes_of(name)
    assert len(set(classes)) == len(palette) == count


def test_pascal_context_numbers_its_classes_by_the_alphabet() -> None:
    """A picture of a screen in a room, VOC's 2008_000002, has 0, 55 and 58 in its published mask."""
    classes, _ = classes_of("pascal_context")
    assert (classes[0], classes[55], classes[58]) == ("background", "tvmonitor", "window")
    assert list(classes[1:]) == sorted(classes[1:])
    assert classes_of("pascal_context_59")[0] == classes[1:]


def test_a_value_outside_the_benchmark_is_named_with_those_wanted(tmp_path: Path) -> None:
    cityscapes(tmp_path, "labelIds", [7, 40])
    with pytest.raises(
        DataError, match=r"holds label 40; wanted 7 to 8, 11 to 13, 17, 19 to 28, 31 to 33 \(19 classes\)"
    ):
        open_dataset("cityscapes", tmp_path, "val")[0]


def test_cityscapes_masks_of_a_conversion_that_was_cut_are_those_downloaded(tmp_path: Path) -> None:
    cityscapes(tmp_path, "labelIds", [7, 33, 0])
    folder = tmp_path / "gtFine" / "train"
    for city, judged in (("aachen", [0, 18, 255]), ("zurich", [1, 1, 1])):  # in part, then whole
        write(folder / city / f"{city}_000000_000019_gtFine_labelTrainIds.png", [1, 1, 1])
        dataset = open_dataset("cityscapes", tmp_path, "train")
        assert len(dataset) == 2
        for index in range(2):
            np.testing.assert_array_equal(dataset[index].labels, [judged])


def test_a_missing_list_or_listed_image_is_named(tmp_path: Path) -> None:
    pascal(tmp_path, [0])
    (tmp_path / "JPEGImages" / "2010_000004.png").unlink()
    with pytest.raises(DataError, match=r"JPEGImages: has no image 2010_000004 \(1 of the list\)"):
        open_dataset("pascal_context", tmp_path, "val")
    (tmp_path / "ImageSets" / "SegmentationContext" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt: cannot be read .*; Pascal Context is the folder VOC2010"):
        open_dataset("pascal_context", tmp_path, "val")


def test_an_image_without_its_mask_is_named(tmp_path: Path) -> None:
    glass(tmp_path, [0, 255])
    (tmp_path / "train" / "office_1" / "1" / "mask.png").unlink()
    with pytest.raises(DataError, match=r"office_1/1/rgb\.png: has no mask"):
        open_dataset("rgbt_glass", tmp_path, "train")


def test_ade20k_names_agree_with_its_own_table(shared: Path) -> None:
    table = (shared / "data" / "ADEChallengeData2016" / "objectInfo150.csv").read_text(encoding="utf-8")
    names = [line.split(",")[-1].replace(";", " ") for line in table.splitlines()[1:] if line.strip()]
    classes, palette = classes_of("ade20k")
    assert len(names) == len(classes) == len(palette) == 150
    for ours, theirs in zip(classes, names, strict=True):
        assert f" {ours} " in f" {theirs} "
