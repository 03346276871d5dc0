"""Anyone's own pictures: a folder of images, a folder of masks, and a list of classes.

    root/classes.txt
    root/images/train/street.jpg    root/masks/train/street.png
    root/images/val/square.png      root/masks/val/square.png

A mask is a greyscale or palette PNG as large as its image: value i is the i-th class of `classes.txt`, counted from 0,
and 255 is ignored. `classes.txt` (UTF-8) has one class a line, `name` or `name, R, G, B`; lines that begin with `#` are
skipped.
"""

from pathlib import Path

from segmenter.config import default_palette
from segmenter.datasets.pairs import MAX_CLASSES, Layout
from segmenter.errors import DataError

CLASSES_NAME = "classes.txt"
EXPECTED = (
    "a folder dataset is classes.txt (one name a line), images/train, images/val (JPEG or PNG)"
    " and masks/train, masks/val (PNG of class indices, the same names)"
)


def layout(root: Path, split: str) -> Layout:
    """The layout of `root` for a split, 'train' or 'val'.

    Raises DataError when `classes.txt` is missing or wrong.
    """
    classes, palette = read_classes(root / CLASSES_NAME)
    return Layout(root / "images" / split, root / "masks" / split, classes, palette, EXPECTED)


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Class names and colours of a `classes.txt`; a class without a colour gets one.

    Raises DataError naming the line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, so the number of classes is unknown; {EXPECTED}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); write one class name a line") from error
    names: list[str] = []
    colours: list[tuple[int, int, int] | None] = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        if line.startswith("#"):
            continue
        name, *fields = (field.strip() for field in line.split(","))
        if not name:
            raise DataError(f"{path}: line {number} has no class name; give it one, or remove the line")
        if name in names:
            raise DataError(f"{path}: line {number} repeats class {name!r}; each name may stand once")
        names.append(name)
        colours.append(_colour(fields, path, number) if fields else None)
    if not 1 <= len(names) <= MAX_CLASSES:
        raise DataError(f"{path}: lists {len(names)} classes; wanted 1 to {MAX_CLASSES}, one name a line")
    spare = default_palette(len(names))
    return tuple(names), tuple(colour or default for colour, default in zip(colours, spare, strict=True))


def _colour(fields: list[str], path: Path, number: int) -> tuple[int, int, int]:
    if len(fields) != 3 or not all(field.isdecimal() and int(field) <= 255 for field in fields):
        raise DataError(f"{path}: line {number} has colour {', '.join(fields)!r}; wanted three numbers of 0 to 255")
    red, green, blue = map(int, fields)
    return red, green, blue
