"""Datasets by name: `shapes` (made on the spot), `folder` (anyone's own), `camvid` and `ade20k`."""

from pathlib import Path

from segmenter.config import default_palette
from segmenter.datasets import ade20k, camvid, folder, shapes
from segmenter.datasets.pairs import Layout, PairedDataset
from segmenter.datasets.sample import IGNORE, SPLITS, Sample, SegmentationDataset, Subset
from segmenter.errors import ConfigError, DataError

__all__ = [
    "DATASETS",
    "IGNORE",
    "SPLITS",
    "Sample",
    "SegmentationDataset",
    "Subset",
    "classes_of",
    "layout_of",
    "open_dataset",
]

_ON_DISK = {"folder": folder, "camvid": camvid, "ade20k": ade20k}
DATASETS = ("shapes", *_ON_DISK)


def open_dataset(name: str, root: Path | None, split: str) -> SegmentationDataset:
    """Open a split, 'train' or 'val', of one of `DATASETS`; `shapes` needs no root.

    Raises ConfigError for an unknown name or split or a missing root, DataError for a folder not laid out as promised.
    """
    if name == "shapes":
        _require_split(split)
        return shapes.Shapes(split)
    return PairedDataset(layout_of(name, root, split))


def layout_of(name: str, root: Path | None, split: str) -> Layout:
    """Where the files of a dataset on disk should lie; of these only `folder`'s list of classes is read.

    Raises ConfigError for an unknown name or split or a missing root, DataError when the root is no folder.
    """
    if name not in _ON_DISK:
        raise ConfigError(f"dataset {name!r}: wanted one of {', '.join(DATASETS)}")
    _require_split(split)
    if root is None:
        raise ConfigError(f"dataset {name} lies on disk; name its folder with --data")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {_ON_DISK[name].EXPECTED}")
    return _ON_DISK[name].layout(root, split)


def classes_of(name: str, count: int | None = None) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Class names and colours of a dataset, or `count` anonymous ones where it has none of its own or not that many.

    Raises ConfigError when neither is known.
    """
    known = {
        "shapes": (shapes.CLASSES, shapes.PALETTE),
        "camvid": (camvid.CLASSES, camvid.PALETTE),
        "ade20k": (ade20k.CLASSES, default_palette(len(ade20k.CLASSES))),
    }
    if name in known and count in (None, len(known[name][0])):
        return known[name]
    if count is None or count < 1:
        raise ConfigError(f"dataset {name!r} has no classes of its own; give their number, 1 or more (got {count})")
    return tuple(f"class {index}" for index in range(count)), default_palette(count)


def _require_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: wanted one of {', '.join(SPLITS)}")
