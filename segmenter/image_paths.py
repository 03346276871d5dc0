"""Which pictures a command reads, as its --images names them, and that it writes over none of them."""

from collections.abc import Sequence
from pathlib import Path

from segmenter.errors import ConfigError, DataError
from segmenter.images import IMAGE_SUFFIXES, picture_files


def find_images(path: Path) -> list[Path]:
    """The file itself, or the JPEG and PNG files in a folder (not below it), sorted.

    Raises DataError when there are none, ConfigError when two would get one name.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; check --images")
    files = picture_files(path)
    if not files:
        raise DataError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)}); point --images at a folder that does")
    by_stem: dict[str, Path] = {}
    for file in files:
        if by_stem.setdefault(file.stem, file) is not file:
            raise ConfigError(f"{file} and {by_stem[file.stem].name} would both become {file.stem}.png; rename one")
    return files


def require_kept(images: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Raises ConfigError where a picture to write is one of those to read."""
    originals = {path.resolve(): path for path in images}
    for output in outputs:
        if output.resolve() in originals:
            raise ConfigError(
                f"{originals[output.resolve()]}: would be written over; pass another --out than the images' folder"
            )
