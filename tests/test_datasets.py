"""Datasets: what they hold, that they can be sent to other processes, and what they say about broken folders."""

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter.datasets import DATASETS, Subset, ade20k, camvid, classes_of, open_dataset
from segmenter.datasets.folder import read_classes
from segmenter.datasets.shapes import SIZE, Shapes
from segmenter.errors import ConfigError, DataError, ImageError


def test_shapes_depend_on_split_and_index_only() -> None:
    first, second = open_dataset("shapes", None, "train"), open_dataset("shapes", None, "train")
    second[3], second[5]
    for index in (0, 1, 4095):
        np.testing.assert_array_equal(first[index].image, second[index].image)
        np.testing.assert_array_equal(first[index].labels, second[index].labels)
    assert (first[0].image != first[1].image).any()
    assert (first[0].image != open_dataset("shapes", None, "val")[0].image).any()


def test_shapes_hold_every_class_in_useful_shares() -> None:
    dataset = Shapes("val")
    assert len(dataset) == 200
    assert len(Shapes("train")) == 4096
    counts = np.zeros(8, np.int64)
    for index in range(100):
        sample = dataset[index]
        assert sample.image.shape == (SIZE, SIZE, 3)
        assert sample.labels.shape == (SIZE, SIZE)
        assert sample.image.dtype == sample.labels.dtype == np.uint8
        counts += np.bincount(sample.labels.ravel(), minlength=8)
    shares = counts / counts.sum()
    assert 0.5 < shares[0] < 0.8
    assert shares[1:].min() > 0.02


def test_shapes_show_their_hue_most_of_the_time_but_not_always() -> None:
    """The share of squares (hue 0.30) whose pixels are mostly green is the hue share and the odd lucky one."""
    green = total = 0
    for sample in (Shapes("train")[index] for index in range(150)):
        inside = sample.labels == 3
        if inside.sum() > 300:
            red_of, green_of, blue_of = sample.image[inside].astype(float).mean(0)
            green += green_of > max(red_of, blue_of)
            total += 1
    assert total > 50
    assert 0.6 < green / total < 0.95


def test_shapes_are_quick_to_make() -> None:
    dataset = Shapes("train")
    dataset[0]
    start = time.process_time()
    for index in range(50):
        dataset[index]
    assert (time.process_time() - start) / 50 < 0.02


@pytest.mark.parametrize("name", ["shapes", "folder"])
def test_datasets_are_sequences_that_pickle(name: str, picture_root: Path) -> None:
    dataset = open_dataset(name, picture_root, "val")
    again = pickle.loads(pickle.dumps(dataset))
    assert len(again) == len(dataset)
    np.testing.assert_array_equal(again[1].image, dataset[1].image)
    assert again.classes == dataset.classes
    assert again.palette == dataset.palette
    assert again.ignore == 255
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset[index]
    assert sum(1 for _ in Subset(dataset, 2)) == 2


def test_subset_spreads_over_the_dataset() -> None:
    dataset = Shapes("val")
    names = [Subset(dataset, 4)[index].name for index in range(4)]
    assert names == [f"shapes/val/{index}" for index in (0, 50, 100, 150)]
    assert len(Subset(dataset)) == len(Subset(dataset, 1000)) == 200
    rest = Subset(dataset, 3, without=range(2, 200))
    assert [rest[index].name for index in range(len(rest))] == ["shapes/val/0", "shapes/val/1"]
    assert Subset(dataset, 2, without=range(100))[1].name == "shapes/val/150"
    with pytest.raises(ConfigError, match="-1 images of a dataset: wanted at least 1, or 0"):
        Subset(dataset, -1)


def test_folder_reads_images_masks_and_classes(picture_root: Path) -> None:
    dataset = open_dataset("folder", str(picture_root), "train")
    assert dataset.classes == ("ground", "wall", "sky")
    assert dataset.palette[0] == (120, 90, 60)
    assert dataset.palette[2] == (90, 160, 230)
    assert len(dataset) == 3
    sample = dataset[1]
    assert sample.name == "p1.png"
    assert sample.image.shape == (40, 56, 3)
    assert (sample.labels[:2] == 255).all()
    assert set(np.unique(sample.labels)) <= {0, 1, 2, 255}
    bright = sample.image.mean(2)
    assert bright[sample.labels == 2].mean() > bright[sample.labels == 0].mean() + 100


def test_folder_takes_16_bit_and_palette_masks(picture_root: Path) -> None:
    path = picture_root / "masks" / "val" / "p0.png"
    mask = np.array(Image.open(path))
    expected = open_dataset("folder", picture_root, "val")[0].labels
    Image.fromarray(mask.astype(np.uint16)).save(path)
    np.testing.assert_array_equal(open_dataset("folder", picture_root, "val")[0].labels, expected)
    Image.fromarray(mask.astype(np.uint16) + 300).save(path)
    with pytest.raises(DataError, match=r"p0\.png: holds label 300, 301, 302"):
        open_dataset("folder", picture_root, "val")[0]


@pytest.mark.parametrize("palette", [False, True])
def test_label_out_of_range_names_file_value_and_count(picture_root: Path, palette: bool) -> None:
    path = picture_root / "masks" / "val" / "p0.png"
    mask = Image.fromarray(np.full((40, 56), 7, np.uint8))
    if palette:
        mask.putpalette(range(30))
    mask.save(path)
    with pytest.raises(DataError, match=r"p0\.png: holds label 7; wanted 0 to 2 \(3 classes\) or 255"):
        open_dataset("folder", picture_root, "val")[0]


def test_sizes_and_unreadable_files_are_named(picture_root: Path) -> None:
    Image.new("L", (8, 8)).save(picture_root / "masks" / "val" / "p0.png")
    (picture_root / "images" / "val" / "p1.png").write_bytes(b"no picture")
    dataset = open_dataset("folder", picture_root, "val")
    with pytest.raises(DataError, match=r"p0\.png: is 8x8 where the image .*p0\.jpg is 56x40"):
        dataset[0]
    with pytest.raises(ImageError, match=r"p1\.png"):
        dataset[1]


def test_folder_pairing_problems(picture_root: Path) -> None:
    (picture_root / "masks" / "train" / "p2.png").unlink()
    with pytest.raises(DataError, match=r"p2\.png: has no mask of the same name in .*check-data"):
        open_dataset("folder", picture_root, "train")
    Image.new("RGB", (56, 40)).save(picture_root / "images" / "val" / "p1.jpg")
    with pytest.raises(DataError, match=r"p1\.png: shares its name"):
        open_dataset("folder", picture_root, "val")


def test_missing_and_empty_folders_name_path_and_layout(picture_root: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; a folder dataset is classes\.txt"):
        open_dataset("folder", picture_root / "nowhere", "train")
    for path in (picture_root / "images" / "val").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"images/val: holds no images"):
        open_dataset("folder", picture_root, "val")
    with pytest.raises(DataError, match=r"trainannot: no such folder|train: no such folder.*CamVid is folders"):
        open_dataset("camvid", picture_root, "train")
    with pytest.raises(DataError, match=r"images/training: no such folder; ADE20K is the folder"):
        open_dataset("ade20k", picture_root, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists 0 classes"),
        ("# only a comment\n", "lists 0 classes"),
        ("wall\n\nsky\n", "line 2 has no class name"),
        ("wall\nwall\n", "line 2 repeats class 'wall'"),
        ("wall, 1, 2\n", "line 1 has colour '1, 2'"),
        ("wall, 1, 2, 256\n", "line 1 has colour"),
        ("wall, red, 2, 3\n", "line 1 has colour"),
        ("\n".join(f"c{index}" for index in range(256)), "lists 256 classes"),
    ],
)
def test_class_list_mistakes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_classes(path)


def test_class_list_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.txt: no such file, so the number of classes is unknown"):
        read_classes(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00wall")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read_classes(tmp_path / "classes.txt")


def test_class_list_of_windows_editors(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfstra\xc3\x9fe, 1, 2, 3\r\nsky\r\n\r\n")
    names, palette = read_classes(tmp_path / "classes.txt")
    assert names == ("straße", "sky")
    assert palette[0] == (1, 2, 3)


def test_names_and_splits_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dataset 'coco': wanted one of shapes, folder, camvid, ade20k, cityscapes"):
        open_dataset("coco", tmp_path, "train")
    for name in DATASETS:
        with pytest.raises(ConfigError, match="split 'test': wanted one of train, val"):
            open_dataset(name, tmp_path, "test")
    with pytest.raises(ConfigError, match="--data"):
        open_dataset("camvid", None, "train")


def test_fixed_classes_have_one_distinct_colour_each() -> None:
    for name, count, colours in (("shapes", 8, 8), ("camvid", 11, 11), ("cityscapes", 19, 19), ("ade20k", 150, 149)):
        classes, palette = classes_of(name)
        assert len(classes) == len(set(classes)) == len(palette) == count
        assert len(set(palette)) == colours  # ADE20K's customary colours show road and skyscraper alike
    assert ade20k.CLASSES[:3] == ("wall", "building", "sky")
    assert ade20k.CLASSES[149] == "flag"


def test_classes_of_unknown_datasets_are_anonymous() -> None:
    assert classes_of("coco", 19)[0][:2] == ("class 0", "class 1")
    assert classes_of("camvid", 12)[0][11] == "class 11"
    for count, message in ((None, "pass --data, its folder, or --num-classes"), (0, "wanted at least one class")):
        with pytest.raises(ConfigError, match=message):
            classes_of("folder", count)


@pytest.mark.parametrize(
    ("name", "images", "masks", "stored", "labels"),
    [
        ("camvid", "val", "valannot", [0, 10, 11, 255], [0, 10, 255, 255]),
        ("ade20k", "images/validation", "annotations/validation", [0, 1, 2, 150], [255, 0, 1, 149]),
    ],
)
def test_stored_values_become_labels(
    tmp_path: Path, name: str, images: str, masks: str, stored: list[int], labels: list[int]
) -> None:
    for folder in (images, masks):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (4, 1)).save(tmp_path / images / "a.jpg")
    Image.fromarray(np.array([stored], np.uint8)).save(tmp_path / masks / "a.png")
    dataset = open_dataset(name, tmp_path, "val")
    assert dataset[0].labels.tolist() == [labels]
    for bad in {12, 151, 254} - set(range(len(dataset.classes) + 1)):
        Image.fromarray(np.array([[1, 2, 3, bad]], np.uint8)).save(tmp_path / masks / "a.png")
        with pytest.raises(DataError, match=rf"a\.png: holds label {bad}; .* \({len(dataset.classes)} classes"):
            dataset[0]


def test_camvid_on_disk(shared: Path) -> None:
    train, val = (open_dataset("camvid", shared / "data" / "camvid", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    sample = train[0]
    stored = np.array(Image.open(shared / "data" / "camvid" / "trainannot" / sample.name))
    assert sample.image.shape == (360, 480, 3)
    np.testing.assert_array_equal(sample.labels == 255, stored == 11)
    np.testing.assert_array_equal(sample.labels[stored < 11], stored[stored < 11])
    assert train.classes == camvid.CLASSES


def test_ade20k_on_disk(shared: Path) -> None:
    root = shared / "data" / "ADEChallengeData2016"
    dataset = open_dataset("ade20k", root, "val")
    assert len(dataset) == 3
    rows = (root / "objectInfo150.csv").read_text(encoding="utf-8").splitlines()[1:]
    table = {int(row.split(",")[0]): row.split(",")[5].replace(";", " ") for row in rows}
    named = set()
    for sample in (dataset[index] for index in range(3)):
        stored = np.array(Image.open(root / "annotations" / "validation" / sample.name.replace(".jpg", ".png")))
        np.testing.assert_array_equal(sample.image, np.array(Image.open(root / "images" / "validation" / sample.name)))
        np.testing.assert_array_equal(sample.labels, np.where(stored == 0, 255, stored.astype(int) - 1))
        for value in set(np.unique(stored)) - {0}:
            name = dataset.classes[np.unique(sample.labels[stored == value]).item()]
            assert name in table[value]
            named.add(name)
    # a street with a bus, a church tower, a house: what the pictures show
    assert {"building", "sky", "road", "bus", "grass"} <= named
    with pytest.raises(DataError, match=r"images/training: no such folder"):
        open_dataset("ade20k", root, "train")


def test_ade20k_names_follow_the_benchmark(shared: Path) -> None:
    """A row holds every synonym's words between semicolons, so a name of two words stands as two fields."""
    rows = (shared / "data" / "ADEChallengeData2016" / "objectInfo150.csv").read_text().splitlines()[1:]
    for row, name in zip(rows, ade20k.CLASSES, strict=True):
        words = row.split(",")[5].replace(";", " ")
        assert name in words
