"""Datasets of image files and mask files, paired by name: what all datasets on disk share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segmenter.datasets.sample import IGNORE, Sample, require_index
from segmenter.datasets.thermal import with_thermal
from segmenter.errors import DataError
from segmenter.images import IMAGE_SUFFIXES, picture_files, read_image, read_labels

MASK_SUFFIXES = (".png",)
_UNREAD_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".tif", ".tiff", ".webp")
MAX_CLASSES = 255  # labels are uint8, and 255 is kept to ignore


@dataclass(frozen=True)
class Layout:
    """Where one split's files lie, and what the values in its masks mean.

    values: what a mask holds for each class, 0 to K - 1 if not given; void: its values for pixels nobody judges.
    depth: folders between `images` or `masks` and their files. image_name and mask_name: what a file's path below them
    is, without its suffix, for a pair's common name `{}`; files named otherwise belong to something else.
    names: the split's common names where a list and not the folder decides. thermal: whether a fourth channel is read
    from beside each image.
    """

    images: Path
    masks: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    expected: str
    values: tuple[int, ...] = ()
    void: tuple[int, ...] = (IGNORE,)
    depth: int = 0
    image_name: str = "{}"
    mask_name: str = "{}"
    names: tuple[str, ...] | None = None
    thermal: bool = False

    def read_picture(self, path: Path) -> np.ndarray:
        """The image of a pair, uint8 [H, W, C].

        Raises ImageError as `read_image` and `with_thermal` do.
        """
        image = read_image(path)
        return with_thermal(image, path) if self.thermal else image

    def to_labels(self, mask: np.ndarray, path: Path) -> np.ndarray:
        """Mask values as they are stored, integer [H, W], to labels uint8 [H, W] with 255 to ignore.

        Raises DataError naming `path` and the values that are neither a class nor void.
        """
        K = len(self.classes)
        wanted = self.values or tuple(range(K))
        table = np.full(1 << 16, -1, np.int16)  # a PNG's greyscale has 16 bits at most
        table[list(wanted)] = np.arange(K)
        table[list(self.void)] = IGNORE
        labels = table[mask]
        bad = labels < 0
        if bad.any():
            values = np.unique(mask[bad])
            named = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
            void = f" or {' or '.join(map(str, self.void))} to ignore" if self.void else ""
            raise DataError(
                f"{path}: holds label {named}; wanted {_ranges(wanted)} ({K} classes)"
                f"{void}; correct the mask or the list of classes"
            )
        return labels.astype(np.uint8)


@dataclass(frozen=True)
class Listing:
    """The files of a split by their pairing; every tuple is sorted."""

    pairs: tuple[tuple[Path, Path], ...]
    without_mask: tuple[Path, ...]
    without_image: tuple[Path, ...]
    ambiguous: tuple[Path, ...]  # images that share their stem with the image before


def list_files(layout: Layout) -> Listing:
    """Pair the split's images with the masks of the same name.

    Raises DataError when a folder is missing or holds no images, or an image on the split's list is missing.
    """
    images = list(_named(layout.images, IMAGE_SUFFIXES, layout.image_name, layout))
    mask_of = dict(_named(layout.masks, MASK_SUFFIXES, layout.mask_name, layout))
    if not images:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError(f"{layout.images}: holds no images ({suffixes}); {layout.expected}")
    image_of: dict[str, Path] = {}
    ambiguous = []
    for name, path in images:
        if image_of.setdefault(name, path) is not path:
            ambiguous.append(path)
    if layout.names is not None:
        absent = [name for name in layout.names if name not in image_of]
        if absent:
            raise DataError(f"{layout.images}: has no image {absent[0]} ({len(absent)} of the list); {layout.expected}")
        mask_of = {name: mask_of[name] for name in layout.names if name in mask_of}
        image_of = {name: image_of[name] for name in layout.names}
        ambiguous = []
    return Listing(
        pairs=tuple((path, mask_of[name]) for name, path in image_of.items() if name in mask_of),
        without_mask=tuple(path for name, path in image_of.items() if name not in mask_of),
        without_image=tuple(path for name, path in mask_of.items() if name not in image_of),
        ambiguous=tuple(ambiguous),
    )


def unread_images(layout: Layout) -> list[Path]:
    """Files of the split's image folder that are images by their name, of a format that is not read."""
    return [path for _, path in _named(layout.images, _UNREAD_SUFFIXES, layout.image_name, layout)]


def require_same_size(image: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path) -> None:
    """Raises DataError naming both files when a mask is not as large as its image."""
    (H, W), (mask_H, mask_W) = image.shape[:2], mask.shape
    if (mask_H, mask_W) != (H, W):
        raise DataError(
            f"{mask_path}: is {mask_W}x{mask_H} where the image {image_path} is {W}x{H}; make them one size"
            " (EXIF orientation is not applied)"
        )


class PairedDataset:
    """The samples of one split of a layout.

    Raises DataError when a folder is missing or empty, or an image has no mask or shares its stem with another.
    """

    ignore = IGNORE

    def __init__(self, layout: Layout) -> None:
        listing = list_files(layout)
        for files, trouble in (
            (listing.without_mask, f"has no mask of the same name in {layout.masks}"),
            (listing.ambiguous, "shares its name, but for the suffix, with another image"),
        ):
            if files:
                others = f" (and {len(files) - 1} more images)" if len(files) > 1 else ""
                raise DataError(f"{files[0]}: {trouble}{others}; `segmenter check-data` lists every such file")
        self.layout, self.pairs = layout, listing.pairs
        self.classes, self.palette = layout.classes, layout.palette
        self.channels = 3 + layout.thermal

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        require_index(index, len(self))
        image_path, mask_path = self.pairs[index]
        image, mask = self.layout.read_picture(image_path), read_labels(mask_path)
        require_same_size(image, mask, image_path, mask_path)
        name = image_path.relative_to(self.layout.images).as_posix()
        return Sample(image, self.layout.to_labels(mask, mask_path), name, image_path)


def _named(root: Path, suffixes: tuple[str, ...], template: str, layout: Layout) -> Iterator[tuple[str, Path]]:
    before, after = template.split("{}")
    for path in _files(root, suffixes, layout):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name.startswith(before) and name.endswith(after):
            yield name[len(before) : len(name) - len(after)], path


def _files(root: Path, suffixes: tuple[str, ...], layout: Layout) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {layout.expected}")
    folders = [root]
    for _ in range(layout.depth):
        folders = sorted(below for folder in folders for below in folder.iterdir() if below.is_dir())
    return [path for folder in folders for path in picture_files(folder, suffixes)]


def _ranges(values: tuple[int, ...]) -> str:
    """`0 to 18`, or `7, 8, 11 to 13, 17`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
