"""MAE, IoU and BER of two classes, against loops over pixels; and in what `segmenter evaluate` says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmenter.binary import BinaryMeasures
from segmenter.checkpoint import save_model
from segmenter.config import SegmenterConfig
from segmenter.evaluate import main as evaluate
from segmenter.inference import Inference, predictor
from segmenter.model import Segmenter


def by_hand(images: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """The three measures pixel by pixel: MAE and IoU means over images, BER over all pixels."""
    right, there = [0, 0], [0, 0]
    for scores, truth in images:
        for score, label in zip(scores.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if label != 255:
                there[label] += 1
                right[label] += int(score > 0.5) == label
    return *means_by_hand(images), 1 - (right[0] / there[0] + right[1] / there[1]) / 2


def means_by_hand(images: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """MAE and IoU, means over images."""
    errors, ious = [], []
    for scores, truth in images:
        error, count, hit, union = 0.0, 0, 0, 0
        for score, label in zip(scores.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if label == 255:
                continue
            said = int(score > 0.5)
            error, count = error + abs(score - label), count + 1
            hit, union = hit + (said and label), union + (said or label)
        if count:
            errors.append(error / count)
            ious.append(hit / union if union else 1.0)
    return sum(errors) / len(errors), sum(ious) / len(ious)


def test_measures_against_pixel_loops() -> None:
    random = np.random.default_rng(1)
    images = []
    for share in (0.5, 0.1, 0.0, 0.9):
        truth = (random.random((9, 13)) < share).astype(np.uint8)
        scores = np.clip(0.6 * truth + random.random((9, 13)) * 0.5, 0, 1).astype(np.float32)
        truth[:2] = 255
        images.append((scores, truth))
    images.append((np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8)))  # neither has the class
    images.append((np.ones((4, 4), np.float32), np.full((4, 4), 255, np.uint8)))  # nothing to judge
    measures = BinaryMeasures()
    for scores, truth in images:
        measures.update(truth, scores)
    found = measures.summary()
    np.testing.assert_allclose([found["mae"], found["image_iou"], found["ber"]], by_hand(images), rtol=1e-12)
    assert len(measures.images) == 5
    for name, present in (("present", True), ("absent", False)):
        some = [(scores, truth) for scores, truth in images[:-1] if bool((truth == 1).any()) is present]
        assert len(some) == (3 if present else 2)
        mae, iou = means_by_hand(some)
        np.testing.assert_allclose([found[f"mae_{name}"], found[f"image_iou_{name}"]], [mae, iou], rtol=1e-12)


def test_images_without_glass_are_no_part_of_those_with_it() -> None:
    """Huo et al.'s code (engine.py, evaluate) returns two means of each, and none over all images."""
    measures = BinaryMeasures()
    for scores in ([0.25, 0.25, 0, 0], [0.75, 0.25, 0, 0]):  # glass missed, and half found
        measures.update(np.array([[1, 1, 0, 0]]), np.array([scores]))
    for scores in ([0.75, 0, 0, 0], [0, 0, 0, 0]):  # glass seen where there is none, and nothing seen
        measures.update(np.zeros((1, 4), np.uint8), np.array([scores]))
    found = measures.summary()
    assert (found["mae_present"], found["image_iou_present"]) == (0.3125, 0.25)
    assert (found["mae_absent"], found["image_iou_absent"]) == (0.09375, 0.5)
    assert (found["mae"], found["image_iou"]) == (0.203125, 0.375)


def test_perfect_wrong_and_undecided() -> None:
    truth = np.array([[0, 0, 1, 1]])
    for scores, wanted in (([[0, 0, 1, 1]], (0, 1, 0)), ([[1, 1, 0, 0]], (1, 0, 1)), ([[0.5] * 4], (0.5, 0, 0.5))):
        measures = BinaryMeasures()
        measures.update(truth, np.array(scores, np.float32))
        assert (measures.mae, measures.image_iou, measures.ber) == wanted


def test_nothing_measured_and_shapes_that_differ() -> None:
    measures = BinaryMeasures()
    assert all(math.isnan(value) for value in measures.summary().values())
    with pytest.raises(ValueError, match=r"scores None and truth \(2, 2\) differ"):
        measures.update(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and truth \(2, 2\) differ"):
        measures.update(np.zeros((2, 2), np.uint8), np.zeros((2, 3)))
    measures.update(np.zeros((2, 2), np.uint8), np.zeros((2, 2)))
    assert math.isnan(measures.ber)
    assert measures.mae == 0


@pytest.mark.parametrize("inference", [Inference(device="cpu"), Inference(window=32, stride=16, device="cpu")])
def test_watched_probabilities_are_those_of_the_labels(tiny_model: Segmenter, inference: Inference) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    watched: list[torch.Tensor] = []
    labels = predictor(tiny_model, inference, watched.append)(image)
    (probabilities,) = watched
    assert probabilities.shape == (3, 40, 56)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(40, 56))
    np.testing.assert_array_equal(probabilities.argmax(0).numpy(), labels)
    np.testing.assert_array_equal(predictor(tiny_model, inference)(image), labels)


def test_evaluate_reports_them_for_two_classes_alone(
    picture_root: Path, tiny_config: SegmenterConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--dataset", "folder", "--data", str(picture_root), "--device", "cpu"]
    torch.manual_seed(0)
    save_model(Segmenter(tiny_config), tmp_path / "three")
    assert evaluate([*common, "--checkpoint", str(tmp_path / "three")]) == 0
    assert "BER" not in capsys.readouterr().out
    # the third class becomes void: what remains are two
    (picture_root / "classes.txt").write_text("rest\nwall\n")
    for path in (picture_root / "masks").glob("*/*.png"):
        from PIL import Image

        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 2, 255, mask).astype(np.uint8)).save(path)
    model = Segmenter(replace(tiny_config, classes=("rest", "wall"), palette=())).eval()
    save_model(model, tmp_path / "two")
    assert evaluate([*common, "--checkpoint", str(tmp_path / "two"), "--json", str(tmp_path / "r.json")]) == 0
    from segmenter.datasets import open_dataset

    images = []
    for sample in (open_dataset("folder", picture_root, "val")[index] for index in range(2)):
        predictor(model, Inference(device="cpu"), lambda p, t=sample.labels: images.append((p[1].numpy(), t)))(
            sample.image
        )
    mae, iou, ber = by_hand(images)
    record = json.loads((tmp_path / "r.json").read_text())
    np.testing.assert_allclose([record["mae"], record["image_iou"], record["ber"]], [mae, iou, ber], rtol=1e-6)
    out = capsys.readouterr().out
    assert f", MAE {mae:.4f}, mean IoU of the images {iou:.4f}, BER {ber:.4f}" in out
    shown = {key: "-" if record[key] is None else f"{record[key]:.4f}" for key in ("mae_present", "image_iou_absent")}
    assert f", MAE of images with wall {shown['mae_present']}, " in out
    assert f", IoU without wall {shown['image_iou_absent']}\n" in out
