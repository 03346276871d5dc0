"""Datasets of image files and mask files in two folders, paired by name: what `folder`, `camvid` and `ade20k` share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segmenter.datasets.sample import IGNORE, Sample, require_index
from segmenter.errors import DataError
from segmenter.images import IMAGE_SUFFIXES, picture_files, read_image, read_labels

MASK_SUFFIXES = (".png",)
MAX_CLASSES = 255  # labels are uint8, and 255 is kept to ignore


@dataclass(frozen=True)
class Layout:
    """Where one split's files lie, and what the values in its masks mean.

    A mask holds `first` to `first + K - 1` for the classes, and `void` values for pixels nobody judges.
    """

    images: Path
    masks: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    expected: str
    first: int = 0
    void: tuple[int, ...] = (IGNORE,)

    def to_labels(self, mask: np.ndarray, path: Path) -> np.ndarray:
        """Mask values as they are stored, integer [H, W], to labels uint8 [H, W] with 255 to ignore.

        Raises DataError naming `path` and the values that are neither a class nor void.
        """
        K = len(self.classes)
        table = np.full(1 << 16, -1, np.int16)  # a PNG's greyscale has 16 bits at most
        table[self.first : self.first + K] = np.arange(K)
        table[list(self.void)] = IGNORE
        labels = table[mask]
        bad = labels < 0
        if bad.any():
            values = np.unique(mask[bad])
            named = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
            void = " or ".join(map(str, self.void))
            raise DataError(
                f"{path}: holds label {named}; wanted {self.first} to {self.first + K - 1} ({K} classes)"
                f" or {void} to ignore; correct the mask or the list of classes"
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
    """Pair the split's images with the masks of the same stem.

    Raises DataError when a folder is missing or holds no images.
    """
    images, masks = _files(layout.images, IMAGE_SUFFIXES, layout), _files(layout.masks, MASK_SUFFIXES, layout)
    if not images:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError(f"{layout.images}: holds no images ({suffixes}); {layout.expected}")
    mask_of = {path.stem: path for path in masks}
    image_of: dict[str, Path] = {}
    ambiguous = []
    for path in images:
        if image_of.setdefault(path.stem, path) is not path:
            ambiguous.append(path)
    return Listing(
        pairs=tuple((path, mask_of[stem]) for stem, path in image_of.items() if stem in mask_of),
        without_mask=tuple(path for stem, path in image_of.items() if stem not in mask_of),
        without_image=tuple(path for path in masks if path.stem not in image_of),
        ambiguous=tuple(ambiguous),
    )


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

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        require_index(index, len(self))
        image_path, mask_path = self.pairs[index]
        image, mask = read_image(image_path), read_labels(mask_path)
        require_same_size(image, mask, image_path, mask_path)
        return Sample(image, self.layout.to_labels(mask, mask_path), image_path.name)


def _files(folder: Path, suffixes: tuple[str, ...], layout: Layout) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {layout.expected}")
    return picture_files(folder, suffixes)
