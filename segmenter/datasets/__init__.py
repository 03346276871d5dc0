"""Datasets by name: `shapes` (made on the spot), `folder` (anyone's own), and the paper's in their own layouts."""

from collections.abc import Callable, Sequence
from pathlib import Path

from segmenter.config import MAX_CLASSES, default_palette
from segmenter.datasets import ade20k, camvid, cityscapes, folder, pascal_context, rgbt_glass, shapes
from segmenter.datasets.pairs import Layout, PairedDataset
from segmenter.datasets.sample import IGNORE, SPLITS, Sample, SegmentationDataset, Subset
from segmenter.errors import ConfigError, DataError

__all__ = [
    "DATASETS",
    "IGNORE",
    "ON_DISK",
    "SPLITS",
    "Sample",
    "SegmentationDataset",
    "Subset",
    "classes_of",
    "layout_of",
    "open_dataset",
    "require_known",
]

_LAYOUTS: dict[str, tuple[Callable[[Path, str], Layout], str]] = {
    "folder": (folder.layout, folder.EXPECTED),
    "camvid": (camvid.layout, camvid.EXPECTED),
    "ade20k": (ade20k.layout, ade20k.EXPECTED),
    "cityscapes": (cityscapes.layout, cityscapes.EXPECTED),
    "pascal_context": (pascal_context.layout, pascal_context.EXPECTED),
    "pascal_context_59": (pascal_context.layout_59, pascal_context.EXPECTED),
    "rgbt_glass": (rgbt_glass.layout, rgbt_glass.EXPECTED),
    "rgbt_glass_thermal": (rgbt_glass.thermal_layout, rgbt_glass.EXPECTED),
}
ON_DISK = tuple(_LAYOUTS)
DATASETS = ("shapes", *ON_DISK)
_CLASSES = {
    "shapes": (shapes.CLASSES, shapes.PALETTE),
    "camvid": (camvid.CLASSES, camvid.PALETTE),
    "ade20k": (ade20k.CLASSES, ade20k.PALETTE),
    "cityscapes": (cityscapes.CLASSES, cityscapes.PALETTE),
    "pascal_context": (pascal_context.CLASSES, pascal_context.PALETTE),
    "pascal_context_59": (pascal_context.FOREGROUND, pascal_context.PALETTE[1:]),
    "rgbt_glass": (rgbt_glass.CLASSES, rgbt_glass.PALETTE),
    "rgbt_glass_thermal": (rgbt_glass.CLASSES, rgbt_glass.PALETTE),
}


def open_dataset(name: str, root: Path | str | None, split: str) -> SegmentationDataset:
    """Open a split, 'train' or 'val', of one of `DATASETS`; `shapes` needs no root.

    Raises ConfigError for an unknown name or split or a missing root, DataError for a folder not laid out as promised.
    """
    require_known(name)
    if name == "shapes":
        _require_split(split)
        return shapes.Shapes(split)
    return PairedDataset(layout_of(name, root, split))


def layout_of(name: str, root: Path | str | None, split: str) -> Layout:
    """Where the files of a dataset on disk should lie; of these only `folder`'s list of classes is read.

    Raises ConfigError for an unknown name or split or a missing root, DataError when the root is no folder.
    """
    require_known(name, ON_DISK)
    _require_split(split)
    if root is None:
        raise ConfigError(f"dataset {name} lies on disk; name its folder with --data")
    layout, expected = _LAYOUTS[name]
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'is a file' if root.exists() else 'no such folder'}; {expected}")
    return layout(root, split)


def classes_of(name: str, count: int | None = None) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Class names and colours of a dataset, or `count` anonymous ones where it has none of its own or not that many.

    Raises ConfigError when neither is known.
    """
    if name in _CLASSES and count in (None, len(_CLASSES[name][0])):
        return _CLASSES[name]
    if count is None:
        raise ConfigError(f"dataset {name!r} has no classes of its own; pass --data, its folder, or --num-classes")
    if not 1 <= count <= MAX_CLASSES:
        raise ConfigError(f"{count} classes: wanted at least one class, at most {MAX_CLASSES}")
    return tuple(f"class {index}" for index in range(count)), default_palette(count)


def require_known(name: str, datasets: Sequence[str] = DATASETS) -> None:
    """Raises ConfigError for a name that is none of these datasets'."""
    if name not in datasets:
        raise ConfigError(f"dataset {name!r}: wanted one of {', '.join(datasets)}")


def _require_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: wanted one of {', '.join(SPLITS)}")
