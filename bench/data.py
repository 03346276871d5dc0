"""How fast training images are loaded and augmented, where the time goes, and whether that keeps a GPU fed.

python -m segmenter_bench.data --dataset camvid --data DIR
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TypeVar

import numpy as np
import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from segmenter.cli import run as run_command
from segmenter.config import HALF
from segmenter.cores import usable_cores
from segmenter.datasets import Sample, SegmentationDataset, open_dataset
from segmenter.datasets.option import DATASET
from segmenter.datasets.pairs import PairedDataset, require_same_size
from segmenter.errors import VerificationError
from segmenter.files import require_writable
from segmenter.images import read_labels
from segmenter.option import require_least
from segmenter.preprocess import normalize_planar
from segmenter.training.augment import augment, augmentation_of, cut_image, cut_labels, draw, pad_to, to_planar
from segmenter.training.colour import distort
from segmenter.training.data import Augmented, Order, batches
from segmenter.training.options import AugmentOptions
from segmenter_bench.runs import write_record

Given = ParamSpec("Given")
Made = TypeVar("Made")
MADE_AHEAD = 2  # batches a worker makes ahead, as PyTorch's DataLoader has it


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Options:
    """Time the loading and augmentation of training images: CPU milliseconds of each stage, and images per second.

    CPU time is what an image costs whatever else the machine does; the rate is by the clock, and needs it idle.
    """

    dataset: Annotated[str, DATASET] = "shapes"
    """The labelled images to read."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: Literal["train", "val"] = "train"
    """Which images to read; where there are few they come again."""
    images: Annotated[int, tyro.conf.arg(metavar="N")] = 200
    """Images to time."""
    batch: int = 8
    """Images a batch."""
    workers: int = 2
    """Processes that make them; 0 for this one."""
    json: Path | None = None
    """Also write the result to this file."""
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)

    def __post_init__(self) -> None:
        require_least(self, images=1, batch=1, workers=0)


class Stages:
    """CPU seconds of each stage, summed over calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, make: Callable[Given, Made], *arguments: Given.args, **named: Given.kwargs) -> Made:
        began = time.process_time()
        made = make(*arguments, **named)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - began
        return made


def profile(dataset: SegmentationDataset, options: Options) -> dict[str, float]:
    """CPU milliseconds an image of each stage, on one thread.

    Raises VerificationError where the stages together are not what training does.
    """
    stages, pairs = Stages(), []
    crop, settings = options.augmentation.crop_for(), augmentation_of(options.augmentation)
    for number in range(options.images):
        sample = _read(dataset, number % len(dataset), stages)
        seed = (0, number)
        drawn = stages.time("draw, crop chosen", draw, sample.labels, seed, crop, settings)
        pixels = stages.time("resize and crop", cut_image, sample.image, drawn)
        target = stages.time("crop labels", cut_labels, sample.labels, drawn.resized, drawn.box)
        if drawn.mirrored:
            pixels, target = pixels[:, ::-1], target[:, ::-1]
        planar = stages.time("to floating point", to_planar, pixels)
        distorted = stages.time("colours", distort, planar, (drawn.colours,))
        normal = stages.time("normalise", normalize_planar, distorted, HALF)[0]
        pair = stages.time("pad", pad_to, crop, normal, target)
        wanted = augment(sample.image, sample.labels, seed, crop, settings, HALF)
        if not all(torch.equal(mine, theirs) for mine, theirs in zip(pair, wanted, strict=True)):
            raise VerificationError(f"{sample.source}: the stages timed here give other pixels than training's")
        pairs.append(pair)
        if len(pairs) == options.batch or number == options.images - 1:
            stages.time("stack a batch", lambda: [torch.stack(parts) for parts in zip(*pairs, strict=True)])
            pairs.clear()
    return {stage: 1000 * seconds / options.images for stage, seconds in stages.seconds.items()}


def _read(dataset: SegmentationDataset, index: int, stages: Stages) -> Sample:
    if not isinstance(dataset, PairedDataset):
        return stages.time("make the image", dataset.__getitem__, index)
    image_path, mask_path = dataset.pairs[index]
    image = stages.time("decode the image", dataset.layout.read_picture, image_path)
    mask = stages.time("decode the mask", read_labels, mask_path)
    require_same_size(image, mask, image_path, mask_path)
    labels = stages.time("mask to labels", dataset.layout.to_labels, mask, mask_path)
    return Sample(image, labels, image_path.name, image_path)


def rate(dataset: SegmentationDataset, options: Options) -> tuple[float, float]:
    """Images per second by the clock, and CPU milliseconds an image of this process and its workers together.

    The clock leaves out as many batches at its start and at its end as workers make ahead: it begins when they are as
    busy as they stay, and none that was made before, while they started, is counted.
    """
    ahead = MADE_AHEAD * options.workers or 1
    timed = max(-(-options.images // options.batch), ahead)
    steps = ahead + timed + ahead
    order = Order(len(dataset), options.batch, 0, 0, steps)
    chosen = options.augmentation
    samples = Augmented(dataset, chosen.crop_for(), augmentation_of(chosen), HALF, 0)
    before = _cpu_seconds()
    each = batches(samples, order, options.workers)

    def take(count: int) -> int:
        return sum(len(images) for images, _ in islice(each, count))

    take(ahead)
    began = time.perf_counter()
    count = take(timed)
    seconds = time.perf_counter() - began
    take(ahead + 1)  # and the end, by which workers stop
    # every worker has ended by now, and only then does its time count as a child's
    return count / seconds, 1000 * (_cpu_seconds() - before) / (steps * options.batch)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(options: Options) -> int:
    if options.json is not None:
        require_writable(options.json)
    torch.set_num_threads(1)
    dataset = open_dataset(options.dataset, options.data, options.split)
    sizes = {dataset[int(index)].labels.shape for index in np.linspace(0, len(dataset) - 1, 5)}
    stages = profile(dataset, options)
    images_per_s, ms = rate(dataset, options)
    total = sum(stages.values())
    table = Table("stage", "CPU ms an image", "share", box=box.SIMPLE)
    for stage, spent in stages.items():
        table.add_row(stage, f"{spent:.2f}", f"{spent / total:.0%}")
    table.add_row("all", f"{total:.2f}", "100%")
    Console().print(table)
    cores = usable_cores()
    height, width = crop = options.augmentation.crop_for()
    shown = ", ".join(f"{w}x{h}" for h, w in sorted(sizes))
    print(
        f"{options.dataset} {options.split} ({shown}), crop {width}x{height}, {options.augmentation.augment},"
        f" {options.workers} workers, batches of {options.batch}:\n"
        f"{images_per_s:.1f} images/s by the clock; {ms:.1f} CPU ms an image with its way to the batch, which would be"
        f" {1000 * cores / ms:.1f} images/s on {cores} idle cores"
    )
    if options.json is not None:
        measured = {"crop": crop, "stages_ms": stages, "images_per_s": images_per_s, "cpu_ms": ms, "cores": cores}
        write_record(options.json, options, measured)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(measure, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
