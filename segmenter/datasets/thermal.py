"""Thermal pictures beside the RGB ones: a fourth channel of 8 bits."""

import zipfile
from pathlib import Path

import numpy as np

from segmenter.errors import ImageError
from segmenter.images import read_labels

TEMPERATURES = "temperature.npy"
PICTURE = "thermal.png"


def has_thermal(path: Path) -> bool:
    """Whether an image's file has a thermal picture beside it."""
    return path.with_name(TEMPERATURES).is_file() or path.with_name(PICTURE).is_file()


def with_thermal(image: np.ndarray, path: Path) -> np.ndarray:
    """An RGB image, uint8 [H, W, 3], with the thermal picture beside its file as a fourth channel: uint8 [H, W, 4].

    That is `temperature.npy`, numbers [H, W], as the dataset is published, or else `thermal.png`, greyscale of 8 or 16
    bits. Either is stretched to 0 .. 255 for each picture alone, as the dataset's authors do: a camera's scale is not
    the next one's.
    Raises ImageError when neither is there, or it cannot be read, or is of another size.
    """
    source = path.with_name(TEMPERATURES)
    if source.is_file():
        warmth = _read_array(source)
    elif (source := path.with_name(PICTURE)).is_file():
        warmth = read_labels(source).astype(np.float64)
    else:
        raise ImageError(
            f"{path}: has neither {TEMPERATURES} nor {PICTURE} beside it; add one, or use the dataset without thermal"
        )
    H, W = image.shape[:2]
    if warmth.shape != (H, W):
        raise ImageError(
            f"{source}: is {'x'.join(map(str, warmth.shape[::-1]))} where the image {path} is {W}x{H}; make them one"
            " size"
        )
    least, most = warmth.min(), warmth.max()
    stretched = (warmth - least) * (255.0 / (most - least)) if most > least else np.zeros((H, W))
    return np.concatenate((image, np.rint(stretched).astype(np.uint8)[..., None]), axis=2)


def _read_array(path: Path) -> np.ndarray:
    """Raises ImageError for what is no array of finite numbers; nothing in the file is run."""
    try:
        values = np.load(path, allow_pickle=False)
        numbers = np.asarray(values, np.float64)
    except (OSError, ValueError, EOFError, TypeError, MemoryError, zipfile.BadZipFile) as error:
        raise ImageError(f"{path}: not an array of numbers ({error}); copy it again") from error
    if numbers.ndim != 2 or not np.isfinite(numbers).all():
        raise ImageError(f"{path}: holds {values.dtype} {values.shape}; wanted finite numbers [H, W]; copy it again")
    return numbers
