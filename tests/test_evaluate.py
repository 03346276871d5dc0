"""The evaluation loop, the command `evaluate`, and how they take bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter import evaluate
from segmenter.boundary import BoundaryIoU
from segmenter.checkpoint import load_model, save_model
from segmenter.confusion import confusion_picture
from segmenter.datasets import Sample, open_dataset
from segmenter.errors import ConfigError, ImageError
from segmenter.evaluation import evaluate_labels, require_same_classes, summary
from segmenter.images import read_image
from segmenter.inference import Inference, predictor
from segmenter.metrics import ConfusionMatrix
from segmenter.model import Segmenter
from segmenter.objects import ObjectRecall
from tests.networks import checkpoint_fixture  # noqa: F401 - a fixture


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
