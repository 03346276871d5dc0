"""How good labels are: the one loop over a dataset that everything here is judged by, and its command.

`python -m segmenter.evaluate --checkpoint FOLDER --dataset camvid --data ROOT`; by many processes, each with a share
of the images: `torchrun --nproc-per-node 4 -m segmenter.evaluate ...`
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from segmenter.cli import run
from segmenter.datasets import Sample, SegmentationDataset, Subset, open_dataset
from segmenter.errors import ConfigError, DataError
from segmenter.files import atomic_path, require_writable
from segmenter.inference import Inference, Predict, predict_named, predictor
from segmenter.ranks import Ranks, joined

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
        "miou": _number(matrix.miou),
        "pixel_accuracy": _number(matrix.pixel_accuracy),
        "mean_accuracy": _number(matrix.mean_accuracy),
        "iou": {name: _number(value) for name, value in zip(classes, matrix.iou, strict=True)},
    }


def iou_table(matrix: "ConfusionMatrix", classes: Sequence[str], title: str | None = None) -> Table:
    """IoU, accuracy and share of the true pixels of each class, for printing; a dash where no pixel counts."""
    pixels = matrix.matrix.sum(1)
    table = Table(title=title)
    table.add_column("class")
    for heading in ("IoU", "accuracy", "pixels %"):
        table.add_column(heading, justify="right")
    for index, name in enumerate(classes):
        accuracy = matrix.matrix[index, index] / pixels[index] if pixels[index] else float("nan")
        share = 100.0 * pixels[index] / max(pixels.sum(), 1)
        table.add_row(name, _text(matrix.iou[index]), _text(accuracy), f"{share:.2f}")
    return table


@dataclass(frozen=True)
class Options:
    """Measure a checkpoint's mIoU, pixel accuracy and mean accuracy on a dataset.

    Where it has two classes, also MAE (of the second's probability), the mean IoU of the images, and BER.
    """

    checkpoint: Path
    """Checkpoint folder, or an official checkpoint.pth beside its variant.yml."""
    dataset: str = "shapes"
    """shapes, folder, camvid, ade20k, cityscapes, pascal_context, pascal_context_59, rgbt_glass or
    rgbt_glass_thermal."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: str = "val"
    """train or val."""
    limit: int = 0
    """At most so many images, spread evenly over the split; 0 for all."""
    json: Path | None = None
    """Also write the result to this file."""
    inference: Annotated[Inference, tyro.conf.arg(name="")] = field(default_factory=Inference)


def evaluate(options: Options) -> int:
    """Evaluate, on every process that torchrun started a share of the images; the numbers are those of one process."""
    with joined(options.inference.device) as ranks:
        return _evaluate(options, ranks)


def _evaluate(options: Options, ranks: Ranks) -> int:
    from segmenter.binary import BinaryMeasures
    from segmenter.checkpoint import load_model

    if options.json is not None:
        require_writable(options.json)
    dataset = Subset(open_dataset(options.dataset, options.data, options.split), options.limit)
    model = load_model(options.checkpoint, ranks.device)
    require_same_classes(model.config.classes, dataset, options.checkpoint)
    binary = BinaryMeasures(dataset.ignore) if len(dataset.classes) == 2 else None
    label = predictor(model, options.inference, None if binary is None else binary.watch)
    each = None if binary is None else lambda sample, *_: binary.update(sample.labels)
    matrix = evaluate_labels(label, ranks.share(dataset), progress=ranks.first, each=each)
    ranks.sum_counts(matrix.matrix)
    if binary is not None:
        binary.errors, binary.ious = ranks.gathered(binary.errors), ranks.gathered(binary.ious)
        ranks.sum_counts(binary.counts)
    if not ranks.first:
        return 0
    require_labelled(matrix, dataset)
    title = f"{model.config.name} on {options.dataset} {options.split}, {len(dataset)} images"
    Console().print(iou_table(matrix, dataset.classes, title))
    print(
        f"mIoU {_text(matrix.miou)}, pixel accuracy {_text(matrix.pixel_accuracy)},"
        f" mean accuracy {_text(matrix.mean_accuracy)}"
    )
    if binary is not None:
        print(f"MAE {_text(binary.mae)}, mean IoU of the images {_text(binary.image_iou)}, BER {_text(binary.ber)}")
    if options.json is not None:
        record = {
            "checkpoint": str(options.checkpoint),
            "model": model.config.name,
            "dataset": options.dataset,
            "split": options.split,
            "images": len(dataset),
            "inference": vars(options.inference),
            **summary(matrix, dataset.classes),
            **({} if binary is None else {name: _number(value) for name, value in binary.summary().items()}),
        }
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _number(value: float | np.floating) -> float | None:
    return None if math.isnan(value) else float(value)


def _text(value: float | np.floating) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    return run(evaluate, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
