"""Pascal Context: `{JPEGImages,SegmentationClassContext}` and the splits' lists in `ImageSets/SegmentationContext`.

Masks hold 0 for background and 1 to 59 for the classes. `pascal_context` judges all 60, as the paper does;
`pascal_context_59` leaves background out. Source: Mottaghi et al. 2014, layout and class order as MMSegmentation
documents them; colours as ADE20K's.
"""

from pathlib import Path

from segmenter.datasets import ade20k
from segmenter.datasets.pairs import Layout
from segmenter.errors import DataError

EXPECTED = (
    "Pascal Context is the folder VOC2010 with JPEGImages, SegmentationClassContext and"
    " ImageSets/SegmentationContext/{train,val}.txt"
)
_NAMES = """\
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, table, dog, horse, motorbike, person,
pottedplant, sheep, sofa, train, tvmonitor, bag, bed, bench, book, building, cabinet, ceiling, cloth, computer, cup,
door, fence, floor, flower, food, grass, ground, keyboard, light, mountain, mouse, curtain, platform, sign, plate,
road, rock, shelves, sidewalk, sky, snow, bedclothes, track, tree, truck, wall, water, window, wood"""
CLASSES = tuple(_NAMES.replace("\n", " ").split(", "))
FOREGROUND = CLASSES[1:]
PALETTE = ade20k.PALETTE[: len(CLASSES)]


def layout(root: Path, split: str) -> Layout:
    """The layout of `root` for a split, 'train' or 'val', with background as class 0.

    Raises DataError when the split's list is missing.
    """
    return Layout(*_places(root), CLASSES, PALETTE, EXPECTED, names=_names(root, split))


def layout_59(root: Path, split: str) -> Layout:
    """The same without background, which is ignored."""
    values = tuple(range(1, 60))
    return Layout(
        *_places(root), FOREGROUND, PALETTE[1:], EXPECTED, values=values, void=(0, 255), names=_names(root, split)
    )


def _places(root: Path) -> tuple[Path, Path]:
    return root / "JPEGImages", root / "SegmentationClassContext"


def _names(root: Path, split: str) -> tuple[str, ...]:
    path = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {EXPECTED}") from error
