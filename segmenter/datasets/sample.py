"""What every dataset is made of: samples, and the few names a dataset answers to."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from segmenter.errors import ConfigError

IGNORE = 255
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Sample:
    """One labelled picture. image: uint8 [H, W, C], RGB first; labels: uint8 [H, W], 255 to ignore.

    name: within its dataset; file: where it lies, if it does; source: either, for messages.
    """

    image: np.ndarray
    labels: np.ndarray
    name: str
    file: Path | None = None

    @property
    def source(self) -> str:
        return self.name if self.file is None else str(self.file)


class SegmentationDataset(Protocol):
    """A sequence of samples with class names and one RGB colour a class; picklable, and cheap to make.

    channels: of its images, 3 where they are RGB alone.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: int
    channels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Raises IndexError outside 0 to `len - 1`, ImageError or DataError for a bad file."""
        ...


class Subset:
    """At most `limit` samples of a dataset, spread evenly over it (neighbours are often alike); 0 keeps all.

    without: places of samples in the dataset that are left out first.
    """

    def __init__(self, dataset: SegmentationDataset, limit: int = 0, without: Iterable[int] = ()) -> None:
        if limit < 0:
            raise ConfigError(f"{limit} images of a dataset: wanted at least 1, or 0 for all of them")
        self.dataset = dataset
        self.classes, self.palette, self.ignore = dataset.classes, dataset.palette, dataset.ignore
        self.channels = dataset.channels
        taken = set(without)
        rest = [place for place in range(len(dataset)) if place not in taken]
        self.places = [rest[place] for place in spread(len(rest), limit)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        require_index(index, len(self))
        return self.dataset[self.places[index]]


def spread(length: int, count: int = 0) -> list[int]:
    """Places of at most `count` of `length` things, spread evenly over them; 0 for all."""
    count = min(count, length) if count else length
    return [index * length // count for index in range(count)]


def require_index(index: int, length: int) -> None:
    """Raises IndexError outside 0 to `length - 1`; this is also what ends a `for` loop over a dataset."""
    if not 0 <= index < length:
        raise IndexError(f"sample {index} of a dataset of {length}")
