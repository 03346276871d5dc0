"""The evaluation loop, the `evaluate` and `predict` commands, and how they take bad input."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmenter import evaluate, predict
from segmenter.boundary import BoundaryIoU
from segmenter.checkpoint import load_model, save_model
from segmenter.confusion import confusion_picture
from segmenter.datasets import Sample, open_dataset
from segmenter.errors import ConfigError, DataError, ImageError
from segmenter.evaluate import evaluate_labels, require_same_classes, summary
from segmenter.images import read_image, read_labels
from segmenter.inference import Inference, pick_device, predictor
from segmenter.metrics import ConfusionMatrix
from segmenter.model import Segmenter
from segmenter.objects import ObjectRecall
from segmenter.preprocess import normalize
from segmenter.window import scaled_views, segment


@pytest.fixture
def checkpoint(tiny_model: Segmenter, tmp_path: Path) -> Path:
    save_model(tiny_model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


class Tiles:
    """Three 16x24 pictures of left class 0, right class 1, with an ignored corner."""

    classes, palette, ignore, channels = ("left", "right", "never"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)), 255, 3

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        labels = np.zeros((16, 24), np.uint8)
        labels[:, 12:] = 1
        labels[:4, :4] = 255
        return Sample(np.repeat(labels[..., None], 3, axis=2), labels, f"tile{index}")


def test_loop_counts_every_judged_pixel() -> None:
    matrix = evaluate_labels(lambda image: np.minimum(image[..., 0], 1), Tiles(), progress=False)
    assert matrix.matrix.sum() == 3 * (16 * 24 - 16)
    assert matrix.miou == matrix.pixel_accuracy == 1.0
    matrix = evaluate_labels(lambda image: np.zeros((16, 24), np.uint8), Tiles(), progress=False)
    left, right = 12 * 16 - 16, 12 * 16
    assert matrix.iou[0] == left / (left + right)
    assert matrix.miou == matrix.iou[0] / 2
    result = summary(matrix, Tiles.classes)
    assert result["iou"] == {"left": matrix.iou[0], "right": 0.0, "never": None}
    json.dumps(result, allow_nan=False)


def test_loop_names_the_sample_that_fails() -> None:
    def refuse(image: np.ndarray) -> np.ndarray:
        raise ImageError("image 24x16: too small")

    with pytest.raises(ImageError, match="tile0: image 24x16: too small"):
        evaluate_labels(refuse, Tiles(), progress=False)


def test_classes_must_agree(picture_root: Path) -> None:
    dataset = open_dataset("folder", picture_root, "val")
    require_same_classes(("Ground", "wall", "SKY"), dataset, "run")
    require_same_classes(("class 0", "class 1", "class 2"), dataset, "run")
    with pytest.raises(ConfigError, match="run: knows 2 classes where the dataset has 3"):
        require_same_classes(("ground", "wall"), dataset, "run")
    with pytest.raises(ConfigError, match="run: class 1 is 'sky' where the dataset's is 'wall'"):
        require_same_classes(("ground", "sky", "wall"), dataset, "run")


def test_predictor_gives_the_networks_labels(tiny_model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (35, 50, 3), np.uint8)
    labels = predictor(tiny_model, Inference())(image)
    assert labels.dtype == np.uint8
    with torch.inference_mode():
        logits = tiny_model(normalize(image, tiny_model.config.preprocess))
    np.testing.assert_array_equal(labels, logits.argmax(1)[0].numpy())


def test_one_window_over_the_whole_image_changes_nothing(tiny_model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    whole, windowed = (predictor(tiny_model, inference)(image) for inference in (Inference(), Inference(window=32)))
    np.testing.assert_array_equal(whole, windowed)


def test_windows_scales_and_flips(tiny_model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)
    calls = []
    tiny_model.register_forward_pre_hook(lambda module, inputs: calls.append(tuple(inputs[0].shape)))
    inference = Inference(window=32, stride=24, window_batch=3, scales=(0.5, 1.0), flip=True)
    labels = predictor(tiny_model, inference)(image)
    assert {shape[1:] for shape in calls} == {(3, 32, 32)}
    # 2 x 3 windows of the image, and 1 x 2 of its half enlarged to 32x56; each mirrored too
    assert [shape[0] for shape in calls] == [2, 2, 3, 3, 3, 3]
    views = scaled_views(image, tiny_model.config.preprocess, (0.5, 1.0), flip=True)
    expected = segment(tiny_model, views, (40, 70), window=32, stride=24)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected.argmax(0).numpy())


def test_images_are_resized_first_and_labelled_at_their_size(tiny_model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 35, 3), np.uint8)
    calls = []
    tiny_model.register_forward_pre_hook(lambda module, inputs: calls.append(tuple(inputs[0].shape)))
    inference = Inference(window=32, stride=24, window_batch=8, scales=(0.5, 1.0), resize=(256, 64))
    labels = predictor(tiny_model, inference)(image)
    # 64x112 has 3 x 5 windows, of which 8 at once; its half, 32x56, has 1 x 2
    assert [shape[0] for shape in calls] == [2, 8, 7]
    views = scaled_views(image, tiny_model.config.preprocess, (0.5, 1.0), resize=(256, 64))
    expected = segment(tiny_model, views, (20, 35), window=32, stride=24)
    np.testing.assert_array_equal(labels, expected.argmax(0).numpy())
    # one that is smaller than a patch is not, once resized
    assert predictor(tiny_model, inference)(image[:5]).shape == (5, 35)


@pytest.mark.parametrize("shape", [(1, 1), (7, 40), (40, 7)])
def test_images_smaller_than_a_patch_are_refused(tiny_model: Segmenter, shape: tuple[int, int]) -> None:
    H, W = shape
    for inference in (Inference(), Inference(window=16)):
        with pytest.raises(ImageError, match=f"image {W}x{H}: smaller than one 8x8 patch"):
            predictor(tiny_model, inference)(np.zeros((H, W, 3), np.uint8))
    with pytest.raises(ImageError, match=r"image 8x8 at scale 0\.5"):
        predictor(tiny_model, Inference(window=16, scales=(1.0, 0.5)))(np.zeros((8, 8, 3), np.uint8))
    assert predictor(tiny_model, Inference())(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8)


def test_inference_options_are_checked(tiny_model: Segmenter) -> None:
    for wrong in (
        {"flip": True},
        {"scales": (0.5,)},
        {"stride": 8},
        {"window": 16, "stride": 32},
        {"window": 16, "stride": -1},
        {"window": 0},
        {"window_batch": 0},
        {"window": 16, "scales": ()},
        {"window": 16, "scales": (0.0,)},
        {"resize": (64, 32)},
        {"window": 16, "resize": (64, 0)},
    ):
        with pytest.raises(ConfigError):
            Inference(**wrong)
    with pytest.raises(ConfigError, match="window 4: smaller than one 8x8 patch"):
        predictor(tiny_model, Inference(window=4))


def test_devices_are_checked() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here"):
            pick_device(name)


def test_evaluate_command(
    checkpoint: Path, picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--dataset", "folder", "--data", str(picture_root)]
    assert evaluate.main([*arguments, "--json", str(tmp_path / "out" / "result.json")]) == 0
    out = capsys.readouterr().out
    assert "mIoU 0." in out
    assert "ground" in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["images"] == 2
    assert set(result["iou"]) == {"ground", "wall", "sky"}
    assert evaluate.main([*arguments, "--window", "32", "--stride", "16", "--flip", "--limit", "1"]) == 0
    assert "1 images" in capsys.readouterr().out


def test_class_names_are_text_and_files_come_before_tables(
    checkpoint: Path,
    picture_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (picture_root / "classes.txt").write_text("ground\nwall [/a]\n[red]sky\n", encoding="utf-8")
    model = load_model(checkpoint)
    model.config = replace(model.config, classes=("ground", "wall [/a]", "[red]sky"), name="net [/b]")
    save_model(model, checkpoint)
    arguments = ["--checkpoint", str(checkpoint), "--dataset", "folder", "--data", str(picture_root)]
    assert evaluate.main(arguments) == 0
    out = capsys.readouterr().out
    for text in ("wall [/a]", "[red]sky", "net [/b] on folder"):
        assert text in out
    files = tmp_path / "result.json", tmp_path / "matrix.png"

    class Unprintable:
        def __rich__(self) -> str:
            raise UnicodeEncodeError("ascii", "ä", 0, 1, "a terminal's")

    monkeypatch.setattr(evaluate, "class_table", lambda *_: Unprintable())
    with pytest.raises(UnicodeEncodeError):
        evaluate.main([*arguments, "--json", str(files[0]), "--confusion", str(files[1])])
    assert all(path.is_file() for path in files)


def test_evaluate_looks_closer(
    checkpoint: Path, picture_root: Path, tiny_model: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--dataset", "folder", "--data", str(picture_root), "--details"]
    json_file, picture = tmp_path / "out" / "result.json", tmp_path / "out" / "confusion.png"
    assert evaluate.main([*arguments, "--band", "2", "--json", str(json_file), "--confusion", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "mean boundary IoU 0." in out
    assert "connected components" in out
    result = json.loads(json_file.read_text())
    dataset, label = open_dataset("folder", picture_root, "val"), predictor(tiny_model, Inference())
    matrix, boundary, objects = ConfusionMatrix(3), BoundaryIoU(3, 2), ObjectRecall(3)
    for sample in dataset:
        labels = label(sample.image)
        for measure in (matrix, boundary, objects):
            measure.update(labels, sample.labels)
    assert result["confusion"] == matrix.matrix.tolist()
    assert list(result["accuracy"].values()) == matrix.accuracy.tolist()
    assert result["boundary"]["band"] == 2
    assert list(result["boundary"]["iou"].values()) == boundary.iou.tolist()
    assert result["objects"] == {"areas": [1024, 9216], **objects.summary(dataset.classes)}
    np.testing.assert_array_equal(read_image(picture), confusion_picture(matrix.matrix, dataset.classes))
    assert evaluate.main([*arguments, "--confusion", str(tmp_path / "matrix")]) == 2
    assert "wanted the name of a picture, such as matrix.png" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--band", "0"]) == 2
    assert "band 0: wanted whole pixels" in capsys.readouterr().err
    assert evaluate.main([*arguments[:-1], "--paper", "multi-scale"]) == 2
    assert "dataset folder: the paper does not evaluate on it" in capsys.readouterr().err


def test_evaluate_refuses_another_datasets_classes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--checkpoint", str(checkpoint), "--dataset", "shapes"]) == 2
    assert "knows 3 classes where the dataset has 8" in capsys.readouterr().err


def test_evaluate_names_a_bad_image(checkpoint: Path, picture_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1, 1)).save(picture_root / "images" / "val" / "p1.png")
    Image.new("L", (1, 1)).save(picture_root / "masks" / "val" / "p1.png")
    arguments = ["--checkpoint", str(checkpoint), "--dataset", "folder", "--data", str(picture_root)]
    assert evaluate.main(arguments) == 2
    file = picture_root / "images" / "val" / "p1.png"
    assert f"error: {file}: image 1x1: smaller than one 8x8 patch" in capsys.readouterr().err


def test_evaluate_refuses_a_split_without_labels(
    checkpoint: Path, picture_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mask in (picture_root / "masks" / "val").iterdir():
        Image.new("L", (56, 40), 255).save(mask)
    arguments = ["--checkpoint", str(checkpoint), "--dataset", "folder", "--data", str(picture_root)]
    assert evaluate.main(arguments) == 2
    assert f"{picture_root / 'images' / 'val' / 'p0.jpg'}: it has no labelled pixel" in capsys.readouterr().err


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
    assert f"{tmp_path / 'photos' / 'b.jpg'} and 1 more: labelled and drawn as stored" in warnings[0]
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
        predict.find_images(tmp_path / "empty")
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
        predict.find_images(tmp_path / "empty")
    (tmp_path / "empty" / "twin.jpg").unlink()
    arguments = ["--checkpoint", str(checkpoint), "--images", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    assert predict.main([*arguments, "--alpha", "2"]) == 2
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
