"""Cityscapes, 19 classes: `leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png` and `gtFine/SPLIT/CITY/NAME_gtFine_*.png`.

Masks are `labelTrainIds` where the folder has them for all (0 to 18, 255 to ignore), else `labelIds` as they are
downloaded, of whose 35 values 19 are judged. Source: Cordts et al. 2016, and the label table of its scripts.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from segmenter.datasets.pairs import Layout

EXPECTED = "Cityscapes is the folder with leftImg8bit/{train,val}/CITY and gtFine/{train,val}/CITY"
# name, colour, and the value in labelIds
_TABLE: tuple[tuple[str, tuple[int, int, int], int], ...] = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
CLASSES = tuple(name for name, _, _ in _TABLE)
PALETTE = tuple(colour for _, colour, _ in _TABLE)
_LABEL_IDS = tuple(value for _, _, value in _TABLE)
# 0 to 33 otherwise; the licence plate's -1 is stored as 255
_VOID_IDS = tuple(sorted({*range(34), 255} - set(_LABEL_IDS)))


def layout(root: Path, split: str) -> Layout:
    """The layout of `root` for a split, 'train' or 'val'."""
    found = _of_label_ids(root, split)
    converted = _count(found.masks, "labelTrainIds")
    # a conversion that was cut leaves some without
    if not converted or converted < _count(found.masks, "labelIds"):
        return found
    return replace(found, values=(), void=(255,), mask_name="{}_gtFine_labelTrainIds")


def _count(masks: Path, kind: str) -> int:
    return sum(1 for _ in masks.glob(f"*/*_gtFine_{kind}.png"))


def to_train_ids(mask: np.ndarray, path: Path) -> np.ndarray:
    """labelIds, integers [H, W], to labelTrainIds, uint8 [H, W] of 0 to 18 and 255.

    Raises DataError naming `path` and the values that Cityscapes has not.
    """
    return _of_label_ids(path.parent, "").to_labels(mask, path)


def _of_label_ids(root: Path, split: str) -> Layout:
    images, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    return Layout(
        *(images, masks, CLASSES, PALETTE, EXPECTED),
        values=_LABEL_IDS,
        void=_VOID_IDS,
        depth=1,
        image_name="{}_leftImg8bit",
        mask_name="{}_gtFine_labelIds",
    )
