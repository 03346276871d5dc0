"""A picture of what the network is trained on: augmented samples beside their labels.

`segmenter show-data --dataset camvid --data ROOT --out samples.png`
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from segmenter.cli import run
from segmenter.datasets import IGNORE, SegmentationDataset, open_dataset
from segmenter.datasets.option import DATASET
from segmenter.drawing import require_picture_path
from segmenter.images import overlay, with_legend, write_image
from segmenter.option import require_least
from segmenter.training.options import AugmentOptions

_GAP = 8  # pixels between samples
_HATCH = 12  # pixels from one line of void's hatching to the next
_VOID = ((255, 255, 255), (0, 0, 0))  # lines side by side, as no class is drawn


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Options:
    """Draw augmented training samples: each picture, then its labels over it, void hatched."""

    out: Path
    """PNG or JPEG to write."""
    dataset: Annotated[str, DATASET] = "shapes"
    """The labelled images to draw."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: Literal["train", "val"] = "train"
    """Which images to draw."""
    samples: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """Samples to draw: the first of a run with this seed."""
    side: int = 240
    """Pixels of the longer side of each picture."""
    seed: int = 0
    """Seed of the run whose samples these are."""
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)

    def __post_init__(self) -> None:
        require_least(self, samples=1, side=16, seed=0)


def show_data(options: Options) -> int:
    require_picture_path(options.out, "--out")
    dataset = open_dataset(options.dataset, options.data, options.split)
    sheet = contact_sheet(dataset, options)
    write_image(options.out, sheet)
    height, width = options.augmentation.crop_for()
    print(
        f"{options.out}: {options.samples} of {len(dataset)} {options.dataset} {options.split} samples,"
        f" {options.augmentation.augment}, crop {width}x{height}; hatched pixels are void"
    )
    return 0


def contact_sheet(dataset: SegmentationDataset, options: Options) -> np.ndarray:
    """The samples, as many in a row as there are rows, with a legend of their classes: uint8 RGB [H, W, 3]."""
    cells, seen = [], np.zeros(256, bool)
    for image, labels in augmented(dataset, options):
        cells.append(_cell(image, labels, dataset.palette, options.side))
        seen[np.unique(labels)] = True
    height, width = cells[0].shape[:2]
    columns = math.ceil(math.sqrt(len(cells)))
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top, left = row * (height + _GAP) + _GAP, column * (width + _GAP) + _GAP
        sheet[top : top + height, left : left + width] = cell
    present = [index for index in range(len(dataset.classes)) if seen[index]]
    names, colours = [dataset.classes[index] for index in present], [dataset.palette[index] for index in present]
    if seen[IGNORE]:
        names, colours = [*names, "(hatched: void)"], [*colours, _VOID[0]]
    return with_legend(sheet, names, colours)


def augmented(dataset: SegmentationDataset, options: Options) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the first batches of a run hold, as pictures: uint8 [H, W, C] and labels uint8 [H, W]."""
    from segmenter.config import Preprocess
    from segmenter.training.augment import augmentation_of
    from segmenter.training.data import Augmented, Order, batches

    chosen = options.augmentation
    plain = Preprocess((0.0,) * dataset.channels, (1.0,) * dataset.channels)
    samples = Augmented(dataset, chosen.crop_for(), augmentation_of(chosen), plain, options.seed)
    for images, labels in batches(samples, Order(len(dataset), 1, options.seed, 0, options.samples), workers=0):
        pixels = (images[0].permute(1, 2, 0) * 255).round().clamp(0, 255).numpy().astype(np.uint8)
        yield pixels, labels[0].numpy()


def _cell(image: np.ndarray, labels: np.ndarray, palette: Sequence[tuple[int, int, int]], side: int) -> np.ndarray:
    """A sample's panels beside each other: RGB, every other channel in grey, the labels over RGB."""
    from segmenter.images import nearest

    factor = side / max(labels.shape)
    rows, columns = (
        nearest(np.arange(shown), length, shown)
        for length, shown in ((length, max(1, round(length * factor))) for length in labels.shape)
    )
    image, labels = image[rows][:, columns], labels[rows][:, columns]
    rgb = image[..., :3]
    extra = [np.repeat(image[..., [channel]], 3, axis=2) for channel in range(3, image.shape[2])]
    labelled = overlay(rgb, labels, palette)
    y, x = np.indices(labels.shape)
    for index, colour in enumerate(_VOID):
        labelled[(labels == IGNORE) & ((x + y) % _HATCH // 3 == index)] = colour
    return np.concatenate((rgb, *extra, labelled), axis=1)


def main(argv: Sequence[str] | None = None) -> int:
    return run(show_data, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
