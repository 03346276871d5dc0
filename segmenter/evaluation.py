"""How good labels are: the one loop over a dataset that all is judged by, and what a dataset must have for it."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from segmenter.datasets import Sample, SegmentationDataset
from segmenter.errors import ConfigError, DataError
from segmenter.inference import Predict, predict_named

if TYPE_CHECKING:
    from segmenter.metrics import ConfusionMatrix


def evaluate_labels(
    predict: Predict,
    dataset: SegmentationDataset,
    progress: bool = True,
    each: Callable[[Sample, np.ndarray, "ConfusionMatrix"], None] | None = None,
) -> "ConfusionMatrix":
    """Label every picture of a dataset and count the pixels against its truth.

    predict: uint8 RGB [H, W, 3] -> integer labels [H, W]; progress: show a bar on stderr. each: called after every
    picture with the sample, its labels and the matrix of that picture alone.
    Raises ImageError or DataError naming the sample that cannot be read or labelled.
    """
    from segmenter.metrics import ConfusionMatrix

    form = len(dataset.classes), dataset.ignore
    matrix = ConfusionMatrix(*form)
    console = Console(stderr=True)
    for index in track(range(len(dataset)), "evaluating", console=console, transient=True, disable=not progress):
        sample = dataset[index]
        labels, alone = predict_named(predict, sample.image, sample.source), ConfusionMatrix(*form)
        alone.update(labels, sample.labels)
        matrix.matrix += alone.matrix
        if each is not None:
            each(sample, labels, alone)
    return matrix


def require_labelled(matrix: "ConfusionMatrix", dataset: SegmentationDataset) -> None:
    """Raises DataError where no pixel of a dataset that was just evaluated has a class, so that nothing was judged."""
    if not matrix.matrix.any():
        raise DataError(
            f"{dataset[0].source}: it has no labelled pixel, nor has any other of the {len(dataset)} images to evaluate"
            f" on; give pixels classes ({dataset.ignore} is ignored)"
        )


def require_same_classes(classes: Sequence[str], dataset: SegmentationDataset, source: object) -> None:
    """Raises ConfigError, naming `source`, when a network's classes are not the dataset's.

    Letter case does not count, nor do the names of a network whose classes are anonymous (`class 0`, `class 1`, ...).
    """
    if len(classes) != len(dataset.classes):
        raise ConfigError(
            f"{source}: knows {len(classes)} classes where the dataset has {len(dataset.classes)};"
            " use the dataset it was trained for, or train on this one"
        )
    index = different_class(classes, dataset.classes)
    if index is not None:
        raise ConfigError(
            f"{source}: class {index} is {classes[index]!r} where the dataset's is {dataset.classes[index]!r};"
            " use the dataset it was trained for, or put the classes in one order"
        )


def different_class(known: Sequence[str], wanted: Sequence[str]) -> int | None:
    """The first class a network knows by another name than the wanted one of as many, None when there is none.

    Letter case does not count, nor do the names of a network whose classes are anonymous.
    """
    if all(name == f"class {index}" for index, name in enumerate(known)):
        return None
    pairs = enumerate(zip(known, wanted, strict=True))
    return next((index for index, (ours, theirs) in pairs if ours.casefold() != theirs.casefold()), None)


def summary(matrix: "ConfusionMatrix", classes: Sequence[str]) -> dict[str, Any]:
    """The measures of a confusion matrix as JSON takes them, None where no pixel counts."""
    return {
        "miou": number(matrix.miou),
        "pixel_accuracy": number(matrix.pixel_accuracy),
        "mean_accuracy": number(matrix.mean_accuracy),
        "iou": {name: number(value) for name, value in zip(classes, matrix.iou, strict=True)},
        "accuracy": {name: number(value) for name, value in zip(classes, matrix.accuracy, strict=True)},
    }


def number(value: float | np.floating) -> float | None:
    """As JSON holds it: null for NaN."""
    return None if math.isnan(value) else float(value)
