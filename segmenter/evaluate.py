"""How good a checkpoint's labels are: mIoU and accuracy on a dataset.

`python -m segmenter.evaluate --checkpoint FOLDER --dataset camvid --data ROOT`; by many processes, each with a share
of the images: `torchrun --nproc-per-node 4 -m segmenter.evaluate ...`
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segmenter.cli import run
from segmenter.confusion import confusion_picture
from segmenter.datasets import Sample, Subset, open_dataset
from segmenter.datasets.option import DATASET
from segmenter.drawing import require_picture_path
from segmenter.evaluation import evaluate_labels, number, require_labelled, require_same_classes, summary
from segmenter.files import atomic_path, require_writable
from segmenter.images import write_image
from segmenter.inference import Inference, predictor
from segmenter.option import ANY_CHECKPOINT
from segmenter.protocol import Views, paper_inference
from segmenter.ranks import Ranks, joined

if TYPE_CHECKING:
    from segmenter.boundary import BoundaryIoU
    from segmenter.metrics import ConfusionMatrix
    from segmenter.objects import ObjectRecall


def class_table(
    matrix: "ConfusionMatrix",
    classes: Sequence[str],
    title: str | None = None,
    boundary: "BoundaryIoU | None" = None,
) -> Table:
    """IoU, accuracy and share of the true pixels of each class, for printing; a dash where no pixel counts."""
    pixels = matrix.matrix.sum(1)
    columns = {"IoU": matrix.iou, "accuracy": matrix.accuracy}
    if boundary is not None:
        columns["boundary IoU"] = boundary.iou
    table = Table(title=None if title is None else escape(title))
    table.add_column("class")
    for heading in (*columns, "pixels %"):
        table.add_column(heading, justify="right")
    for index, name in enumerate(classes):
        share = 100.0 * pixels[index] / max(pixels.sum(), 1)
        table.add_row(escape(name), *(_text(values[index]) for values in columns.values()), f"{share:.2f}")
    return table


def object_table(objects: "ObjectRecall", classes: Sequence[str]) -> Table:
    """How many of the truth's connected components of each size are found, for printing."""
    first, second = objects.areas
    bounds = (f"below {first}", f"{first} to {second - 1}", f"{second} or more")
    table = Table(title="connected components of the truth")
    table.add_column("size")
    for heading in ("pixels", "objects", "found", "recall", "mean recall"):
        table.add_column(heading, justify="right")
    for (size, values), bound in zip(objects.summary(classes).items(), bounds, strict=True):
        shares = (values[name] for name in ("found", "recall", "mean_recall"))
        table.add_row(size, bound, str(values["objects"]), *("-" if one is None else f"{one:.4f}" for one in shares))
    return table


@dataclass(frozen=True)
class Options:
    """Measure a checkpoint's mIoU, pixel accuracy and mean accuracy on a dataset.

    Where it has two classes, also MAE (of the second's probability), the mean IoU of the images, and BER; MAE and IoU
    also of the images whose truth has the second, and of the others.

    With --details also Boundary IoU (Cheng et al. 2021: IoU within a band along each class's edges), and by size of the
    truth's connected components, small below 32x32 pixels and large from 96x96 on: how many are found (half of their
    pixels carry their class), and the share of their pixels labelled right, over all pixels and as a mean over classes.
    """

    checkpoint: Annotated[Path, ANY_CHECKPOINT]
    dataset: Annotated[str, DATASET] = "shapes"
    """The labelled images."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: str = "val"
    """train or val."""
    limit: int = 0
    """At most so many images, spread evenly over the split; 0 for all."""
    paper: Views | None = None
    """Evaluate as the paper does on ADE20K, Pascal Context and Cityscapes: sets --resize, --window and --stride.
    For multi-scale also --scales 0.5 0.75 1 1.25 1.5 1.75 and --flip.
    A --stride beside it wins: the paper's is that of the official config.yml, such as 512 for windows of 512.
    The official segm.eval.miou since December 2021, and mmsegmentation, have 32 pixels less than the window: 480."""
    details: bool = False
    """Also measure Boundary IoU, and recall by object size."""
    band: float = 0.02
    """Width of Boundary IoU's band: below 1 a share of the image's diagonal, else pixels."""
    json: Path | None = None
    """Also write the result, with the confusion matrix (a row a true class), to this file."""
    confusion: Path | None = None
    """Also draw the confusion matrix, a row a true class, as this PNG."""
    inference: Annotated[Inference, tyro.conf.arg(name="")] = field(default_factory=Inference)


def evaluate(options: Options) -> int:
    """Evaluate, on every process that torchrun started a share of the images; the numbers are those of one process."""
    with joined(options.inference.device) as ranks:
        return _evaluate(options, ranks)


def _evaluate(options: Options, ranks: Ranks) -> int:
    from segmenter.binary import BinaryMeasures
    from segmenter.boundary import BoundaryIoU
    from segmenter.checkpoint import load_model
    from segmenter.metrics import ConfusionMatrix
    from segmenter.objects import ObjectRecall

    if options.json is not None:
        require_writable(options.json)
    if options.confusion is not None:
        require_picture_path(options.confusion, "--confusion")
    dataset = Subset(open_dataset(options.dataset, options.data, options.split), options.limit)
    boundary = BoundaryIoU(len(dataset.classes), options.band, dataset.ignore)
    objects = ObjectRecall(len(dataset.classes), dataset.ignore)
    model = load_model(options.checkpoint, ranks.device)
    require_same_classes(model.config.classes, dataset, options.checkpoint)
    inference = options.inference
    if options.paper is not None:
        inference = paper_inference(options.dataset, options.paper, model.config, inference)

    def look_closer(sample: Sample, labels: np.ndarray, alone: ConfusionMatrix) -> None:
        if binary is not None:
            binary.update(sample.labels)
        if options.details:
            boundary.update(labels, sample.labels)
            objects.update(labels, sample.labels)

    binary = BinaryMeasures(dataset.ignore) if len(dataset.classes) == 2 else None
    label = predictor(model, inference, None if binary is None else binary.watch)
    matrix = evaluate_labels(label, ranks.share(dataset), progress=ranks.first, each=look_closer)
    ranks.sum_counts(matrix.matrix, boundary.counts, objects.counts)
    if binary is not None:
        binary.images = ranks.gathered(binary.images)
        ranks.sum_counts(binary.counts)
    if not ranks.first:
        return 0
    require_labelled(matrix, dataset)
    title = f"{model.config.name} on {options.dataset} {options.split}, {len(dataset)} images"
    tables = [class_table(matrix, dataset.classes, title, boundary if options.details else None)]
    measures = {
        "mIoU": matrix.miou,
        "pixel accuracy": matrix.pixel_accuracy,
        "mean accuracy": matrix.mean_accuracy,
    }
    record = {
        "checkpoint": str(options.checkpoint),
        "model": model.config.name,
        "dataset": options.dataset,
        "split": options.split,
        "images": len(dataset),
        "inference": vars(inference),
        **summary(matrix, dataset.classes),
    }
    if binary is not None:
        found = binary.summary()
        measures |= {"MAE": binary.mae, "mean IoU of the images": binary.image_iou, "BER": binary.ber}
        for images, key in (("with", "present"), ("without", "absent")):
            where = f"{images} {dataset.classes[1]}"
            measures |= {f"MAE of images {where}": found[f"mae_{key}"], f"IoU {where}": found[f"image_iou_{key}"]}
        record |= {name: number(value) for name, value in found.items()}
    if options.details:
        tables.append(object_table(objects, dataset.classes))
        measures["mean boundary IoU"] = boundary.miou
        iou = {name: number(value) for name, value in zip(dataset.classes, boundary.iou, strict=True)}
        record["boundary"] = {"band": options.band, "miou": number(boundary.miou), "iou": iou}
        record["objects"] = {"areas": objects.areas, **objects.summary(dataset.classes)}
    if options.json is not None:
        record["confusion"] = matrix.matrix.tolist()
        # a line a key: with an indent, 150 classes would take 22,500 lines
        lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
        with atomic_path(options.json) as temporary:
            temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    if options.confusion is not None:
        write_image(options.confusion, confusion_picture(matrix.matrix, dataset.classes))
    # what took long is in the files before a terminal can refuse it
    for table in tables:
        Console().print(table)
    print(", ".join(f"{name} {_text(value)}" for name, value in measures.items()))
    return 0


def _text(value: float | np.floating) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    return run(evaluate, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
