"""How to get a dataset of the paper, what is still missing of it, and conversions of its masks.

`segmenter prepare-data cityscapes DIR --convert`
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmenter.cli import run
from segmenter.datasets import ON_DISK, SPLITS, layout_of, require_known
from segmenter.datasets.convert import CONVERTERS
from segmenter.datasets.option import DATASET_ON_DISK
from segmenter.datasets.pairs import list_files
from segmenter.datasets.sources import SOURCES, Source
from segmenter.datasets.thermal import has_thermal
from segmenter.errors import ConfigError, DataError


@dataclass(frozen=True)
class Options:
    """Say where a dataset is had, on what terms and in which folders; with DIR, also what is missing there.

    Nothing is downloaded. Exit status 1 when something is missing; `segmenter check-data` then reads every file.
    """

    name: Annotated[str, tyro.conf.Positional, DATASET_ON_DISK]
    """The dataset."""
    root: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = None
    """Its folder, where it has been unpacked."""
    convert: bool = False
    """Write the masks, and lists of images, that are made of the published ones, where they are not there yet."""


def prepare_data(options: Options) -> int:
    require_known(options.name, ON_DISK)
    if options.convert and options.root is None:
        raise ConfigError("--convert: wanted the dataset's folder too; name it after the dataset")
    if options.convert and options.name not in CONVERTERS:
        raise ConfigError(f"--convert: {options.name} needs no conversion; leave it out")
    source = SOURCES[options.name]
    print(*describe(source), sep="\n")
    if options.root is None:
        return 0
    print()
    if options.convert:
        print(f"{options.root}: {CONVERTERS[options.name](options.root)} masks written")
    looks = [_look(options.name, options.root, split, source) for split in SPLITS]
    missing = [line for _, lines in looks for line in lines]
    found, wanted = sum(count for count, _ in looks), source.images_in_all
    if wanted is not None and found < wanted:
        missing.append(f"{found:,} images of {wanted:,} in all; unpack the rest")
    for line in missing:
        print(line)
    if not missing:
        # how many your own pictures should be, nobody knows
        state = "complete" if source.images or wanted else "every image has its mask"
        command = f"segmenter check-data {options.root} --dataset {options.name}"
        print(f"{options.root}: {state}; `{command}` reads every file")
    return 1 if missing else 0


def describe(source: Source) -> Iterator[str]:
    """What to know about a dataset, line by line."""
    yield source.title
    for heading in ("where", "terms", "size"):
        yield f"  {heading + ':':<12}{getattr(source, heading)}"
    if source.images is not None:
        yield f"  {'images:':<12}" + ", ".join(f"{count:,} {split}" for split, count in source.images.items())
    if source.images_in_all is not None:
        yield f"  {'images:':<12}{source.images_in_all:,} in all"
    yield f"  {'conversion:':<12}{source.conversion}"
    yield "  folders:"
    yield from (f"    {line}" for line in source.tree.splitlines())


def _look(name: str, root: Path, split: str, source: Source) -> tuple[int, list[str]]:
    """How many pairs a split has, which is printed, and what it lacks, line by line."""
    try:
        layout = layout_of(name, root, split)
        listing = list_files(layout)
    except DataError as error:
        return 0, [f"{split}: {error}"]
    found = len(listing.pairs)
    wanted = None if source.images is None else source.images[split]
    print(f"{root}: {split} {found:,} images with masks" + ("" if wanted is None else f" (the paper: {wanted:,})"))
    cold = [path for path, _ in listing.pairs if layout.thermal and not has_thermal(path)]
    kinds = (
        (listing.without_mask, "without a mask"),
        (listing.without_image, "without an image"),
        (cold, "without temperatures"),
    )
    missing = [f"{split}: {len(files)} {what}, the first {files[0]}" for files, what in kinds if files]
    if wanted is not None and found < wanted:
        missing.append(f"{split}: {wanted - found:,} images fewer than the paper's; unpack the rest")
    return found, missing


def main(argv: Sequence[str] | None = None) -> int:
    return run(prepare_data, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
