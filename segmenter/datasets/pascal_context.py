"""Pascal Context: `{JPEGImages,SegmentationClassContext}` and the splits' lists in `ImageSets/SegmentationContext`.

Masks hold 0 for background and 1 to 59 for the classes. `pascal_context` judges all 60, as the paper does;
`pascal_context_59` leaves background out. Source: Mottaghi et al. 2014, layout as MMSegmentation documents it; colours
as ADE20K's. The masks that everyone trains on, the official code's and MMSegmentation's, number the classes by the
alphabet; the names that the official code shows beside them are in another order.
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
background, aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car,
cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse,
keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves,
sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood"""
CLASSES = tuple(_NAMES.replace("\n", " ").split(", "))
FOREGROUND = CLASSES[1:]
PALETTE = ade20k.PALETTE[: len(CLASSES)]


def layout(root: Path, split: str) -> Layout:
    """The layout of `root` for a split, 'train' or 'val', with background as class 0.

    Raises DataError when the split's list is missing.
    """
    return Layout(*_places(root), CLASSES, PALETTE, EXPECTED, names=listed(root, split))


def layout_59(root: Path, split: str) -> Layout:
    """The same without background, which is ignored."""
    values = tuple(range(1, 60))
    return Layout(
        *_places(root), FOREGROUND, PALETTE[1:], EXPECTED, values=values, void=(0, 255), names=listed(root, split)
    )


def _places(root: Path) -> tuple[Path, Path]:
    return root / "JPEGImages", root / "SegmentationClassContext"


def list_path(root: Path, split: str) -> Path:
    """The file with the names of a split's images."""
    return root / "ImageSets" / "SegmentationContext" / f"{split}.txt"


def listed(root: Path, split: str) -> tuple[str, ...]:
    """The names of a split's images. Raises DataError when its list cannot be read."""
    path = list_path(root, split)
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {EXPECTED}") from error
