"""What is wrong with a dataset folder, file by file, before a training run stumbles over it.

`segmenter check-data ROOT --dataset folder`
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from segmenter.cli import run
from segmenter.cores import usable_cores
from segmenter.datasets import IGNORE, ON_DISK, SPLITS, layout_of, require_known
from segmenter.datasets.option import DATASET_ON_DISK
from segmenter.datasets.pairs import Layout, list_files, require_same_size, unread_images
from segmenter.errors import DataError, ImageError, SegmenterError
from segmenter.images import orientation, read_labels
from segmenter.option import require

_SMALLEST_SIDE = 16  # pixels: most networks' patch, and no network takes an image smaller than its own


@dataclass(frozen=True)
class Problem:
    """Something wrong: its kind, and a line naming the file and what to do; a warning is not counted."""

    kind: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Report:
    """What one split holds. pixels: int64 [256], the count of each label, the last one ignored."""

    split: str
    images: int
    problems: tuple[Problem, ...]
    pixels: np.ndarray


def check_split(layout: Layout, split: str, progress: bool = True) -> Report:
    """Read every file of a split and collect all that is wrong with it."""
    try:
        listing = list_files(layout)
    except DataError as error:
        return Report(split, 0, (Problem("folder", str(error)),), np.zeros(256, np.int64))
    problems = [
        *(Problem("missing mask", f"{path}: no mask of this name in {layout.masks}") for path in listing.without_mask),
        *(
            Problem("missing image", f"{path}: no image of this name in {layout.images}")
            for path in listing.without_image
        ),
        *(
            Problem("unread image", f"{path}: neither JPEG nor PNG by its name, and left out; convert it")
            for path in unread_images(layout)
        ),
        *(Problem("name used twice", f"{path}: another image has this name; rename one") for path in listing.ambiguous),
    ]
    pixels = np.zeros(256, np.int64)
    # decoding leaves the interpreter lock, so threads help
    with ThreadPoolExecutor(usable_cores()) as pool:
        results = pool.map(lambda pair: check_pair(layout, *pair), listing.pairs)
        description = f"checking {split}"
        shown = track(
            results,
            description,
            total=len(listing.pairs),
            console=Console(stderr=True),
            transient=True,
            disable=not progress,
        )
        for found, counts in shown:
            problems += found
            pixels += counts
    if pixels.any() and not pixels[:IGNORE].any():
        message = f"{layout.masks}: every pixel is {IGNORE}, ignored; label some, there is nothing to learn or judge"
        problems.append(Problem("no labelled pixel", message))
    return Report(split, len(listing.pairs) + len(listing.without_mask), tuple(problems), pixels)


def check_pair(layout: Layout, image_path: Path, mask_path: Path) -> tuple[list[Problem], np.ndarray]:
    """What is wrong with an image and its mask, and the pixels of each label, int64 [256]."""
    problems: list[Problem] = []
    counts: np.ndarray = np.zeros(256, np.int64)
    image = mask = None
    try:
        image = layout.read_picture(image_path)
    except ImageError as error:
        problems.append(Problem("unusable image", str(error)))
    try:
        mask = read_labels(mask_path)
        counts = np.bincount(layout.to_labels(mask, mask_path).ravel(), minlength=256)
    except ImageError as error:
        problems.append(Problem("unusable mask", str(error)))
    except DataError as error:
        problems.append(Problem("label out of range", str(error)))
    if image is not None and (turn := orientation(image_path)) != 1:
        advice = "not turned as EXIF says; see that its mask fits the pixels as stored, or turn them"
        problems.append(Problem("turned image", f"{image_path}: orientation {turn}, {advice}", warning=True))
    if image is not None and min(image.shape[:2]) < _SMALLEST_SIDE:
        size = f"{image.shape[1]}x{image.shape[0]}"
        advice = f"smaller than a patch of {_SMALLEST_SIDE} pixels; leave it out, or use a larger one"
        problems.append(Problem("small image", f"{image_path}: is {size}, {advice}", warning=True))
    if image is not None and mask is not None:
        try:
            require_same_size(image, mask, image_path, mask_path)
        except DataError as error:
            problems.append(Problem("sizes differ", str(error)))
    return problems, counts


def pixel_table(classes: Sequence[str], reports: Sequence[Report]) -> Table:
    """Each class's share of the labelled pixels, a column a split; a dash for a class that never occurs."""
    table = Table(title="share of pixels, %")
    table.add_column("class")
    for report in reports:
        table.add_column(report.split, justify="right")
    for index, name in [*enumerate(classes), (IGNORE, "(ignored)")]:
        shares = (100.0 * report.pixels[index] / max(report.pixels.sum(), 1) for report in reports)
        table.add_row(escape(name), *(f"{share:.3f}" if share else "-" for share in shares))
    return table


@dataclass(frozen=True)
class Options:
    """Say what is wrong with a dataset folder: exit status 0 when nothing is, 1 when something is."""

    root: tyro.conf.Positional[Path]
    """The dataset's folder."""
    dataset: Annotated[str, DATASET_ON_DISK] = "folder"
    """How the folder is laid out."""
    split: Literal["train", "val", "all"] = "all"
    """Which part to check."""
    show: Annotated[int, tyro.conf.arg(metavar="N")] = 20
    """Name at most N files of each kind of problem; 0 names all."""

    def __post_init__(self) -> None:
        require(self.show >= 0, "--show", self.show, "a number of files, or 0 for all")


def check_data(options: Options) -> int:
    require_known(options.dataset, ON_DISK)
    splits = SPLITS if options.split == "all" else (options.split,)
    try:
        layouts = {split: layout_of(options.dataset, options.root, split) for split in splits}
    except SegmenterError as error:
        if not options.root.is_dir():
            raise
        print(f"list of classes:\n  {error}")
        return 1
    reports = [check_split(layout, split) for split, layout in layouts.items()]
    problems = [problem for report in reports for problem in report.problems]
    if any(report.pixels.any() for report in reports):
        Console().print(pixel_table(layouts[splits[0]].classes, reports))
    # after the table, which of many classes is longer than a screen
    for line in _problem_lines(problems, options.show):
        print(line)
    count = sum(not problem.warning for problem in problems)
    sizes = ", ".join(f"{report.split} {report.images} images" for report in reports)
    print(f"{options.root}: {sizes}; {count or 'no'} problem{'' if count == 1 else 's'}")
    return 1 if count else 0


def _problem_lines(problems: Sequence[Problem], show: int) -> Iterator[str]:
    for kind, count in Counter(problem.kind for problem in problems).items():
        warning = any(problem.kind == kind and problem.warning for problem in problems)
        yield f"{'warning: ' if warning else ''}{kind}: {count}"
        messages = [problem.message for problem in problems if problem.kind == kind]
        yield from (f"  {message}" for message in messages[: show or None])
        if 0 < show < count:
            yield f"  and {count - show} more; --show 0 names all"


def main(argv: Sequence[str] | None = None) -> int:
    return run(check_data, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
