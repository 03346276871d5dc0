"""`segmenter check-data` finds every mistake it is for, names the file, and leaves a status a script can use."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter.check_data import check_split, main
from segmenter.datasets import layout_of


def test_clean_folder(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(picture_root)]) == 0
    out = capsys.readouterr().out
    assert "train 3 images, val 2 images; no problems" in out
    assert "ground" in out
    assert "(ignored)" in out


def test_pixel_counts(picture_root: Path) -> None:
    report = check_split(layout_of("folder", picture_root, "val"), "val", progress=False)
    assert report.images == 2
    assert report.pixels.sum() == 2 * 40 * 56
    assert report.pixels[255] == 2 * 2 * 56
    assert report.pixels[3:255].sum() == 0


def test_every_problem_is_named(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = picture_root / "images" / "train", picture_root / "masks" / "train"
    val_images, val_masks = picture_root / "images" / "val", picture_root / "masks" / "val"
    (masks / "p0.png").unlink()
    Image.new("L", (56, 40)).save(masks / "alone.png")
    (images / "p1.png").write_bytes((images / "p1.png").read_bytes()[:300])
    Image.fromarray(np.full((40, 56), 9, np.uint8)).save(masks / "p2.png")
    Image.new("L", (10, 10)).save(val_masks / "p0.png")
    Image.new("RGB", (56, 40)).save(val_masks / "p1.png")
    Image.new("RGBA", (56, 40)).save(val_images / "p1.png")
    Image.new("RGB", (56, 40)).save(val_images / "p9.webp")
    assert main([str(picture_root)]) == 1
    out = capsys.readouterr().out
    assert out.index("(ignored)") < out.index("missing mask")  # a table of many classes is longer than a screen
    for kind, file in (
        ("missing mask: 1", "p0.jpg"),
        ("missing image: 1", "alone.png"),
        ("unusable image: 2", "p1.png"),
        ("unusable mask: 1", "masks/val/p1.png"),
        ("label out of range: 1", "holds label 9"),
        ("sizes differ: 1", "is 10x10 where the image"),
        ("unread image: 1", "p9.webp: neither JPEG nor PNG by its name"),
    ):
        assert kind in out
        assert file in out
    assert "8 problems" in out


def test_images_that_exif_turns_are_named(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((picture_root / "images" / "train").glob("*.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 3  # by 180 degrees, which leaves its size
    Image.open(path).save(path, exif=exif)
    assert main([str(picture_root)]) == 0
    out = capsys.readouterr().out
    assert "warning: turned image: 1" in out
    assert f"{path}: orientation 3, not turned as EXIF says" in out
    assert "no problems" in out


def test_long_lists_are_capped_with_a_count(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(30):
        Image.new("L", (4, 4)).save(picture_root / "masks" / "val" / f"extra{index:02}.png")
    assert main([str(picture_root), "--split", "val", "--show", "5"]) == 1
    out = capsys.readouterr().out
    assert "missing image: 30" in out
    assert out.count("extra") == 5
    assert "and 25 more" in out
    main([str(picture_root), "--split", "val", "--show", "0"])
    assert capsys.readouterr().out.count("extra") == 30


def test_empty_and_missing_splits(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (picture_root / "images" / "val").iterdir():
        path.unlink()
    assert main([str(picture_root)]) == 1
    assert "images/val: holds no images" in capsys.readouterr().out
    (picture_root / "images" / "val").rmdir()
    assert main([str(picture_root), "--split", "val"]) == 1
    assert "images/val: no such folder" in capsys.readouterr().out


def test_class_list_problems(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (picture_root / "classes.txt").write_text("wall\nwall\n")
    assert main([str(picture_root)]) == 1
    assert "line 2 repeats class 'wall'" in capsys.readouterr().out
    (picture_root / "classes.txt").unlink()
    assert main([str(picture_root)]) == 1
    assert "the number of classes is unknown" in capsys.readouterr().out


def test_usage_errors_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "error:" in capsys.readouterr().err
    for name in ("coco", "shapes"):
        assert main([str(tmp_path), "--dataset", name]) == 2
        assert f"dataset '{name}': wanted one of folder, camvid" in capsys.readouterr().err
    assert main([]) == 2


def test_images_and_masks_nothing_can_be_learnt_from(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mask in (picture_root / "masks" / "val").iterdir():
        Image.new("L", (56, 40), 255).save(mask)
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        Image.new(mode, (30, 15)).save(picture_root / kind / "train" / "p1.png")
    assert main([str(picture_root)]) == 1
    out = capsys.readouterr().out
    assert "no labelled pixel: 1" in out
    assert f"{picture_root / 'masks' / 'val'}: every pixel is 255" in out
    assert "warning: small image: 1" in out
    assert "train/p1.png: is 30x15, smaller than a patch of 16 pixels" in out
    assert "; 1 problem\n" in out


def test_a_file_and_a_negative_number_are_named(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(picture_root / "classes.txt")]) == 2
    assert "classes.txt: is a file; a folder dataset is" in capsys.readouterr().err
    assert main([str(picture_root), "--show", "-1"]) == 2
    assert "--show -1: wanted a number of files" in capsys.readouterr().err


def test_ade20k_on_disk(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(shared / "data" / "ADEChallengeData2016")
    assert main([root, "--dataset", "ade20k", "--split", "val"]) == 0
    assert "val 3 images; no problems" in capsys.readouterr().out
    assert main([root, "--dataset", "ade20k"]) == 1


def test_class_names_are_text(picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (picture_root / "classes.txt").write_text("ground\nwall [/a]\n[red]sky\n", encoding="utf-8")
    assert main([str(picture_root)]) == 0
    out = capsys.readouterr().out
    assert "wall [/a]" in out
    assert "[red]sky" in out
