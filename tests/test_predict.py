"""The command `predict`: labels and overlays, and how it takes bad input."""

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter import predict
from segmenter.errors import ConfigError, DataError
from segmenter.image_paths import find_images
from segmenter.images import read_image, read_labels
from segmenter.inference import Inference, predictor
from segmenter.model import Segmenter
from tests.networks import checkpoint_fixture  # noqa: F401 - a fixture


def test_predict_warns_of_pictures_that_exif_turns(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name, turn in (("a.jpg", 1), ("b.jpg", 6), ("c.jpg", 8), ("d.png", None)):
        exif = Image.Exif()
        if turn is not None:
            exif[0x0112] = turn
        Image.new("RGB", (40, 24)).save(tmp_path / "photos" / name, exif=exif)
    arguments = ["--checkpoint", str(checkpoint), "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    assert predict.main(arguments) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert f"{tmp_path / 'photos' / 'b.jpg'} and 1 more: labelled as stored" in warnings[0]
    assert Image.open(tmp_path / "out" / "labels" / "b.png").size == (40, 24)


def test_predict_command(
    checkpoint: Path, picture_root: Path, tiny_model: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = picture_root / "images" / "train", tmp_path / "out"
    assert predict.main(["--checkpoint", str(checkpoint), "--images", str(folder), "--out", str(out)]) == 0
    assert "3 of 3 images" in capsys.readouterr().out
    label = predictor(tiny_model, Inference())
    for path in folder.iterdir():
        image = read_image(path)
        np.testing.assert_array_equal(read_labels(out / "labels" / f"{path.stem}.png"), label(image))
        assert read_image(out / "overlays" / f"{path.stem}.png").shape[0] > image.shape[0]
    one = ["--checkpoint", str(checkpoint), "--images", str(folder / "p1.png"), "--out", str(tmp_path / "one")]
    assert predict.main(one) == 0
    assert [path.name for path in (tmp_path / "one" / "labels").iterdir()] == ["p1.png"]


def test_predict_never_writes_over_its_images(
    checkpoint: Path, picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (picture_root / "images" / "val" / "p1.png").read_bytes()
    for name in ("labels", "overlays"):
        (picture_root / "images" / "val").rename(tmp_path / name)
        (picture_root / "images" / "val").symlink_to(tmp_path / name)
        arguments = ["--checkpoint", str(checkpoint), "--images", str(picture_root / "images" / "val")]
        assert predict.main([*arguments, "--out", str(tmp_path)]) == 2
        assert "p1.png: would be written over; pass another --out" in capsys.readouterr().err
        assert (tmp_path / name / "p1.png").read_bytes() == before
        (picture_root / "images" / "val").unlink()
        (tmp_path / name).rename(picture_root / "images" / "val")


def test_predict_names_bad_images_and_goes_on(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "good.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGBA", (20, 20)).save(folder / "clear.png")
    Image.new("I;16", (20, 20)).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes((folder / "good.png").read_bytes()[:50])
    status = predict.main(["--checkpoint", str(checkpoint), "--images", str(folder), "--out", str(tmp_path / "out")])
    assert status == 1
    printed = capsys.readouterr()
    assert "1 of 5 images" in printed.out
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 4
    for name, reason in (
        ("dot.png", "image 1x1: smaller than one 8x8 patch"),
        ("clear.png", "alpha channel"),
        ("deep.png", "16 bits"),
        ("broken.jpg", "cannot be read"),
    ):
        assert any(name in line and reason in line for line in errors)
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["good.png"]


def test_predict_usage_errors(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no images"):
        find_images(tmp_path / "empty")
    for images, message in (("empty", "holds no images"), ("nowhere", "no such file or folder")):
        arguments = [
            "--checkpoint",
            str(checkpoint),
            "--images",
            str(tmp_path / images),
            "--out",
            str(tmp_path / "out"),
        ]
        assert predict.main(arguments) == 2
        assert message in capsys.readouterr().err
    for name in ("twin.png", "twin.jpg"):
        Image.new("RGB", (20, 20)).save(tmp_path / "empty" / name)
    with pytest.raises(ConfigError, match=r"twin\.png and twin\.jpg would both become twin\.png"):
        find_images(tmp_path / "empty")
    (tmp_path / "empty" / "twin.jpg").unlink()
    arguments = ["--checkpoint", str(checkpoint), "--images", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    assert predict.main([*arguments, "--alpha", "2"]) == 2
    assert "--alpha 2.0: wanted 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predict_on_a_full_disk(
    checkpoint: Path,
    picture_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    out = tmp_path / "out"
    images = picture_root / "images" / "val"
    assert predict.main(["--checkpoint", str(checkpoint), "--images", str(images), "--out", str(out)]) == 2
    assert f"error: {out / 'labels' / 'p0.png'}: No space left on device" in capsys.readouterr().err
    assert not any(path.is_file() for path in out.rglob("*"))
