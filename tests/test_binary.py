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
    errors, ious, right, there = [], [], [0, 0], [0, 0]
    for scores, truth in images:
        error, count, hit, union = 0.0, 0, 0, 0
        for score, label in zip(scores.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if label == 255:
                continue
            said = int(score > 0.5)
            error, count = error + abs(score - label), count + 1
            hit, union = hit + (said and label), union + (said or label)
            there[label] += 1
            right[label] += said == label
        if count:
            errors.append(error / count)
            ious.append(hit / union if union else 1.0)
    ber = 1 - (right[0] / there[0] + right[1] / there[1]) / 2
    return sum(errors) / len(errors), sum(ious) / len(ious), ber


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
    assert len(measures.ious) == 5


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
    assert f", MAE {mae:.4f}, mean IoU of the images {iou:.4f}, BER {ber:.4f}" in capsys.readouterr().out
