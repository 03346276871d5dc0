"""Masks as a dataset is published, made into those that are read here; what is there already is left as it is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from segmenter.datasets import pascal_context
from segmenter.datasets.cityscapes import to_train_ids
from segmenter.errors import DataError
from segmenter.files import atomic_path
from segmenter.images import read_labels

# the 59 classes among the 459 of Pascal Context's own masks, by the alphabet
_CONTEXT_59 = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98),
    *(104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308),
    *(324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
_CONTEXT_VALUES = 459
_MAT_KEY = "LabelMap"


def convert_cityscapes(root: Path) -> int:
    """Write `*_gtFine_labelTrainIds.png` beside every `*_gtFine_labelIds.png` of train and val; returns how many.

    Raises DataError where there are none, or naming a mask with a value that Cityscapes has not.
    """
    sources = sorted(
        path for split in ("train", "val") for path in root.glob(f"gtFine/{split}/*/*_gtFine_labelIds.png")
    )
    if not sources:
        raise DataError(f"{root / 'gtFine'}: has no */*_gtFine_labelIds.png; unpack gtFine_trainvaltest.zip there")
    targets = [path.with_name(path.name.replace("_labelIds.", "_labelTrainIds.")) for path in sources]
    return _write(sources, targets, lambda path: to_train_ids(read_labels(path), path))


def convert_pascal_context(root: Path) -> int:
    """Write `SegmentationClassContext` from `trainval/*.mat`; returns how many masks.

    Those of the splits' lists are converted, and a list that is not there is made of VOC's own. The 400 classes that
    are none of the 59 become background, as in the benchmark.
    Raises DataError for files that are missing or not what they should be, ModuleNotFoundError without scipy.
    """
    from scipy.io import loadmat

    folder = root / "trainval"
    lists = {split: pascal_context.list_path(root, split) for split in ("train", "val")}
    made = {split: _voc_names(root, split, folder) for split, path in lists.items() if not path.is_file()}
    table = np.zeros(_CONTEXT_VALUES + 1, np.uint8)
    table[list(_CONTEXT_59)] = np.arange(1, len(_CONTEXT_59) + 1)

    def read(path: Path) -> np.ndarray:
        try:
            values = loadmat(str(path))[_MAT_KEY]
        except Exception as error:  # a damaged file can fail anywhere inside the reader
            raise DataError(f"{path}: not a .mat file with {_MAT_KEY} ({error}); unpack it again") from error
        if values.ndim != 2 or not np.isin(values, np.arange(_CONTEXT_VALUES + 1)).all():
            raise DataError(f"{path}: {_MAT_KEY} is no picture of 0 to {_CONTEXT_VALUES}; unpack it again")
        return table[values.astype(np.int64)]

    stems = [stem for split in lists for stem in made.get(split) or pascal_context.listed(root, split)]
    sources = [folder / f"{stem}.mat" for stem in stems]
    count = _write(sources, [root / "SegmentationClassContext" / f"{stem}.png" for stem in stems], read)
    for split, names in made.items():
        with atomic_path(lists[split]) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return count


def _voc_names(root: Path, split: str, masks: Path) -> list[str]:
    """Those on VOC's list of a split that have a mask, sorted."""
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    try:
        listed = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        # an OSError's own text has its number and the path once more
        told = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{path}: cannot be read ({told}); unpack VOCtrainval_03-May-2010.tar") from error
    names = sorted(name for name in listed if (masks / f"{name}.mat").is_file())
    if not names:
        raise DataError(f"{masks}: has no .mat file of {path}; unpack trainval.tar.gz of Pascal Context there")
    return names


def _write(sources: Sequence[Path], targets: Sequence[Path], read: Callable[[Path], np.ndarray]) -> int:
    """Write a PNG for each source whose target is not there; returns how many. A kill leaves whole files alone."""
    missing = [pair for pair in zip(sources, targets, strict=True) if not pair[1].is_file()]
    for source, target in track(missing, "converting", console=Console(stderr=True), transient=True):
        labels = Image.fromarray(read(source))
        with atomic_path(target) as temporary:
            labels.save(temporary, format="PNG")
    return len(missing)


CONVERTERS = {
    "cityscapes": convert_cityscapes,
    "pascal_context": convert_pascal_context,
    "pascal_context_59": convert_pascal_context,
}
