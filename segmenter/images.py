"""Reading and writing pictures and label maps, and drawing labels over pictures.

Only JPEG and PNG files are opened, told by their content and not by their name. EXIF orientation is not applied: a mask
belongs to the pixels as they are stored, and so do the labels we write.
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from segmenter.errors import ImageError
from segmenter.files import atomic_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
Palette = Sequence[tuple[int, int, int]]

_ORIENTATION = 0x0112  # EXIF's tag
# how a PNG begins: signature, the IHDR chunk's length and name, width and height, bits a sample
_PNG_START = struct.Struct(">8s4x4s8xB")
# Pillow stretches greyscale of few bits to 0..255; a mask's values are these times smaller
_STRETCH = {1: 1, 2: 85, 4: 17, 8: 1}
# what Pillow raises for broken files of the two formats
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: Path) -> np.ndarray:
    """A JPEG or PNG as uint8 RGB [H, W, 3], converted from greyscale or palette; of an animation the first frame.

    Raises ImageError for a file that is missing, damaged, of another format, above Pillow's pixel limit, with an alpha
    channel, with 16 bits a channel, or CMYK.
    """
    image, depth = _decode(path, ("JPEG", "PNG"))
    if depth == 16 or image.mode.startswith(("I", "F")):
        raise ImageError(f"{path}: has 16 bits a channel; wanted 8-bit RGB, convert it first")
    if image.has_transparency_data:
        raise ImageError(f"{path}: has an alpha channel ({image.mode}); wanted RGB, flatten it onto a background first")
    if image.mode not in ("RGB", "L", "P", "1"):
        raise ImageError(f"{path}: has mode {image.mode}; wanted 8-bit RGB, convert it first")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_labels(path: Path) -> np.ndarray:
    """A PNG whose pixel values, or palette indices, are classes: uint8 [H, W], or int32 for 16-bit greyscale.

    Raises ImageError for a file that is missing, damaged, not a PNG, above Pillow's pixel limit, or coloured.
    """
    image, depth = _decode(path, ("PNG",))
    if image.mode.startswith("I"):
        return np.array(image).astype(np.int32)
    if image.mode == "P":
        return np.array(image)
    if image.mode in ("L", "1"):
        return np.array(image).astype(np.uint8) // np.uint8(_STRETCH[depth])
    raise ImageError(
        f"{path}: is {image.mode}, and masks must hold class indices; replace each colour by its class's index and save"
        " as greyscale or palette PNG"
    )


def orientation(path: Path) -> int:
    """The EXIF orientation of a readable picture: 1 where its pixels are stored as they are meant to be seen."""
    with Image.open(path, formats=("JPEG", "PNG")) as image:
        return int(image.getexif().get(_ORIENTATION, 1))


def turned_warning(turned: Sequence[Path | str]) -> str:
    """What to say of pictures that were labelled and whose `orientation` is not 1."""
    more = f" and {len(turned) - 1} more" if len(turned) > 1 else ""
    return f"{turned[0]}{more}: labelled as stored, not turned as EXIF says; turn the pixels first"


def picture_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files of a folder (not below it) with one of the suffixes, in any case, sorted; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")


def nearest(places: np.ndarray, length: int, resized: int) -> np.ndarray:
    """Which of `length` pixels holds the centre of each place on a side resized to `resized` pixels.

    In whole numbers, as `segmenter_trt_cli` does: Pillow's NEAREST rounds a centre on an edge now here, now there.
    """
    return (2 * places + 1) * length // (2 * resized)


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Labels [h, w] at another size [height, width], each the one its pixel's centre falls into."""
    h, w = labels.shape
    if (h, w) == (height, width):
        return labels
    return labels[nearest(np.arange(height), h, height)[:, None], nearest(np.arange(width), w, width)]


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 RGB [H, W, 3] as PNG or JPEG, by the suffix, atomically."""
    picture = Image.fromarray(image)
    with atomic_path(path) as temporary:
        picture.save(temporary)


def write_labels(path: Path, labels: np.ndarray, palette: Palette) -> None:
    """Write the picture of labels [H, W] atomically as a PNG."""
    with atomic_path(path) as temporary:
        label_picture(labels, palette).save(temporary, format="PNG")


def label_picture(labels: np.ndarray, palette: Palette) -> Image.Image:
    """Labels [H, W] as class indices: palette colours up to 256 classes, 16-bit grey above.

    Values outside the palette, such as 255 to ignore, show black.
    """
    if len(palette) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(_colour_table(palette).tobytes())
    return picture


def overlay(image: np.ndarray, labels: np.ndarray, palette: Palette, alpha: float = 0.5) -> np.ndarray:
    """Class colours blended over a picture; pixels whose label is no class of the palette stay as they are.

    image: uint8 [H, W, 3]; labels: integer [H, W]; alpha: share of the class colour. Returns uint8 [H, W, 3].
    """
    colours = np.asarray(palette, np.float32)
    known = labels < len(palette)
    blended = image.astype(np.float32)
    blended[known] += alpha * (colours[labels[known]] - blended[known])
    return (blended + 0.5).astype(np.uint8)


def legend(classes: Sequence[str], palette: Palette, width: int, text_height: int = 13) -> np.ndarray:
    """A strip of colour swatches and class names, wrapped to `width` pixels: uint8 [H, width, 3] on white."""
    font = ImageFont.load_default(text_height)
    swatch, gap = text_height, text_height // 2
    row_height = text_height + gap
    places, x, row = [], gap, 0
    for name in classes:
        item = swatch + gap + int(font.getlength(name)) + 2 * gap
        if x > gap and x + item > width:
            x, row = gap, row + 1
        places.append((x, gap // 2 + row * row_height))
        x += item
    strip = Image.new("RGB", (width, (row + 1) * row_height + gap // 2), "white")
    draw = ImageDraw.Draw(strip)
    for name, colour, (left, top) in zip(classes, palette, places, strict=True):
        draw.rectangle((left, top + 1, left + swatch, top + 1 + swatch), fill=tuple(colour), outline="black")
        draw.text((left + swatch + gap, top + swatch // 2 + 1), name, fill="black", font=font, anchor="lm")
    return np.array(strip)


def with_legend(image: np.ndarray, classes: Sequence[str], palette: Palette) -> np.ndarray:
    """A picture, uint8 [H, W, 3], with the legend below it; a narrow one gets white beside it so that names fit."""
    width = max(image.shape[1], 160)
    picture = np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=255)
    return np.concatenate((picture, legend(classes, palette, width)))


def _decode(path: Path, formats: tuple[str, ...]) -> tuple[Image.Image, int]:
    """The file's first frame with its pixels in memory, and the bits a sample it has in the file."""
    wanted = " or ".join(formats)
    try:
        with Path(path).open("rb") as file, Image.open(file, formats=formats) as image:
            # Pillow only warns between one and two times its limit; None lifts the limit
            limit = Image.MAX_IMAGE_PIXELS
            size = f"{image.width}x{image.height}"
            if limit is not None and image.width * image.height > limit:
                raise ImageError(f"{path}: has {size} pixels; wanted at most {limit} in all, shrink it first")
            image.load()
            file.seek(0)
            return image, _png_depth(file.read(_PNG_START.size))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a {wanted} file; convert it to one, or replace it if it is damaged") from None
    except _BROKEN as error:
        raise ImageError(f"{path}: cannot be read as {wanted} ({error}); replace or remove it") from error


def _png_depth(start: bytes) -> int:
    """Bits a sample of a PNG, and 8 for a JPEG: Pillow hides the 16 bits of colour PNGs and the few of grey ones."""
    signature, chunk, depth = _PNG_START.unpack(start)
    return int(depth) if signature == b"\x89PNG\r\n\x1a\n" and chunk == b"IHDR" else 8


def _colour_table(palette: Palette) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table
