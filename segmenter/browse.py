"""One HTML page of images, labels, predictions and mistakes, the worst first; it needs no network and no server.

`python -m segmenter.browse --checkpoint FOLDER --dataset camvid --data ROOT --out browse.html`
"""

import base64
import io
import json
import math
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from PIL import Image

from segmenter.cli import run
from segmenter.datasets import Sample, SegmentationDataset, Subset, open_dataset
from segmenter.datasets.option import DATASET
from segmenter.device import pick_device
from segmenter.evaluation import evaluate_labels, number, require_labelled, require_same_classes, summary
from segmenter.files import atomic_path, require_writable
from segmenter.images import resize_labels
from segmenter.inference import Inference, predictor
from segmenter.option import ANY_CHECKPOINT, require

if TYPE_CHECKING:
    from segmenter.metrics import ConfusionMatrix

_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Options:
    """Evaluate a checkpoint and write a page to look at its predictions with, each beside its image and its label."""

    checkpoint: Annotated[Path, ANY_CHECKPOINT]
    out: Path
    """HTML file to write."""
    dataset: Annotated[str, DATASET] = "shapes"
    """The labelled images."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: str = "val"
    """train or val."""
    limit: int = 0
    """Evaluate at most so many images, spread evenly over the split; 0 for all."""
    show: int = 100
    """Show at most so many images, those with the lowest mIoU; 0 for all. An image takes about 60 kB of the page."""
    side: int = 640
    """Longest side of the pictures on the page, in pixels; measures are of the whole image all the same."""
    inference: Annotated[Inference, tyro.conf.arg(name="")] = field(default_factory=Inference)

    def __post_init__(self) -> None:
        require(self.show >= 0, "--show", self.show, "a number of images, or 0 for all of them")
        require(self.side >= 16, "--side", self.side, "16 pixels or more")


class Shelf:
    """The images of a page, at most `show` of the lowest mIoU, 0 for all; those without a labelled pixel come last."""

    def __init__(self, show: int, side: int) -> None:
        self.show, self.side = show, side
        self.images: list[dict[str, Any]] = []

    def add(self, sample: Sample, labels: np.ndarray, alone: "ConfusionMatrix") -> None:
        """What `evaluate_labels` calls after every picture."""
        self.images.append(picture(sample, labels, alone, self.side))
        if self.show and len(self.images) >= 2 * self.show:
            self.images = self.worst()

    def worst(self) -> list[dict[str, Any]]:
        """The images to show, the lowest mIoU first."""
        ordered = sorted(self.images, key=lambda one: math.inf if one["miou"] is None else one["miou"])
        return ordered[: self.show or None]


def picture(sample: Sample, labels: np.ndarray, alone: "ConfusionMatrix", side: int) -> dict[str, Any]:
    """One image for the page: photo as JPEG, truth and labels as zlib-compressed indices, and its own measures.

    side: the longest that its pictures get; each index is that of the nearest pixel.
    """
    H, W = labels.shape
    scale = min(1.0, side / max(H, W))
    h, w = max(1, round(H * scale)), max(1, round(W * scale))
    photo = io.BytesIO()
    Image.fromarray(sample.image[..., :3]).resize((w, h), Image.Resampling.BOX).save(
        photo, "JPEG", quality=_JPEG_QUALITY
    )
    return {
        "name": sample.name,
        "width": w,
        "height": h,
        "miou": number(alone.miou),
        "accuracy": number(alone.pixel_accuracy),
        "iou": {str(index): float(value) for index, value in enumerate(alone.iou) if not math.isnan(value)},
        "photo": f"data:image/jpeg;base64,{base64.b64encode(photo.getvalue()).decode()}",
        "truth": _packed(resize_labels(sample.labels, h, w)),
        "labels": _packed(resize_labels(labels, h, w)),
    }


def page(
    title: str, dataset: SegmentationDataset, matrix: "ConfusionMatrix", images: Sequence[dict[str, Any]], note: str
) -> str:
    """The whole document. matrix: of all images evaluated; images: those `picture` made to be shown."""
    measures = summary(matrix, dataset.classes)
    data = {
        "title": title,
        "note": note,
        "ignore": dataset.ignore,
        "classes": dataset.classes,
        "palette": dataset.palette,
        "iou": list(measures["iou"].values()),
        **{name: measures[name] for name in ("miou", "pixel_accuracy", "mean_accuracy")},
        "images": images,
    }
    # nothing in it may end the element that holds it
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    template = Path(__file__).with_name("browse.html").read_text(encoding="utf-8")
    return template.replace("__TITLE__", escape(title), 1).replace("__DATA__", text, 1)


def browse(options: Options) -> int:
    from segmenter.checkpoint import load_model

    require_writable(options.out)
    dataset = Subset(open_dataset(options.dataset, options.data, options.split), options.limit)
    model = load_model(options.checkpoint, pick_device(options.inference.device))
    require_same_classes(model.config.classes, dataset, options.checkpoint)
    shelf = Shelf(options.show, options.side)
    matrix = evaluate_labels(predictor(model, options.inference), dataset, each=shelf.add)
    require_labelled(matrix, dataset)
    images = shelf.worst()
    title = f"{model.config.name} on {options.dataset} {options.split}"
    some = f"the {len(images)} with the lowest mIoU of " if len(images) < len(dataset) else ""
    text = page(title, dataset, matrix, images, f"{some}{len(dataset)} images")
    with atomic_path(options.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{options.out}: {some}{len(dataset)} images, mIoU {matrix.miou:.4f}; open it in a browser")
    return 0


def _packed(indices: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(indices.astype(np.uint8).tobytes(), 9)).decode()


def main(argv: Sequence[str] | None = None) -> int:
    return run(browse, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
