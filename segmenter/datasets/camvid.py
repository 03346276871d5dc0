"""CamVid, 11 classes and void, as commonly shared: `{train,val}/NAME.png` and `{train,val}annot/NAME.png`.

Source: Brostow et al. 2009, the 11 classes of Badrinarayanan et al. 2017 (SegNet); annotations hold 11 where void.
"""

from pathlib import Path

from segmenter.datasets.pairs import Layout
from segmenter.datasets.sample import IGNORE

EXPECTED = "CamVid is folders train, trainannot, val, valannot with images and masks of the same names"
CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)


def layout(root: Path, split: str) -> Layout:
    """The layout of `root` for a split, 'train' or 'val'."""
    return Layout(root / split, root / f"{split}annot", CLASSES, PALETTE, EXPECTED, void=(len(CLASSES), IGNORE))
