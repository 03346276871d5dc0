"""What `segmenter.images` reads, refuses and draws."""

import errno
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmenter.datasets import Sample
from segmenter.datasets.fitted import Fitted
from segmenter.errors import ImageError
from segmenter.images import (
    legend,
    overlay,
    read_image,
    read_labels,
    resize_labels,
    with_legend,
    write_image,
    write_labels,
)

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
RGB = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
MASK = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9) % 3


def write_png(path: Path, depth: int, colour_type: int, rows: bytes, width: int, height: int) -> None:
    """A PNG chunk by chunk, for the kinds Pillow does not write; every row begins with filter 0."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".dat"])
def test_reads_rgb_by_content(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(RGB).save(path, format="JPEG" if suffix == ".jpg" else "PNG", quality=95)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == (6, 9, 3)
    if suffix != ".jpg":
        np.testing.assert_array_equal(image, RGB)


def test_converts_grey_palette_and_bilevel(tmp_path: Path) -> None:
    grey = Image.fromarray(MASK * 100)
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(MASK[..., None] * 100, 3, axis=2))
    write_labels(tmp_path / "palette.png", MASK, PALETTE)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.array(PALETTE, np.uint8)[MASK])
    Image.fromarray(MASK > 0).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bilevel.png")[..., 0], (MASK > 0) * np.uint8(255))


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "moving.png"), RGB)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(RGB).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (6, 9, 3)


def test_refuses_alpha(tmp_path: Path) -> None:
    rgba = np.dstack((RGB, np.full((6, 9), 128, np.uint8)))
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    with pytest.raises(ImageError, match=r"alpha\.png.*alpha channel.*flatten"):
        read_image(tmp_path / "alpha.png")
    Image.fromarray(MASK).save(tmp_path / "key.png", transparency=0)
    with pytest.raises(ImageError, match="alpha channel"):
        read_image(tmp_path / "key.png")


def test_refuses_16_bits(tmp_path: Path) -> None:
    Image.fromarray(MASK.astype(np.uint16) * 1000).save(tmp_path / "grey16.png")
    row = b"\x00" + struct.pack(">9H", *range(0, 9000, 1000))
    write_png(tmp_path / "rgb16.png", 16, 2, row * 2, width=3, height=2)
    for name in ("grey16.png", "rgb16.png"):
        with pytest.raises(ImageError, match=rf"{name}: has 16 bits.*convert"):
            read_image(tmp_path / name)


def test_refuses_cmyk(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "print.jpg")
    with pytest.raises(ImageError, match=r"print\.jpg: has mode CMYK"):
        read_image(tmp_path / "print.jpg")


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a picture", whole[:20], whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=name) as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_only_jpeg_and_png_are_opened(tmp_path: Path) -> None:
    for kind in ("GIF", "BMP", "TIFF"):
        Image.fromarray(RGB).save(tmp_path / "picture.png", format=kind)
        with pytest.raises(ImageError, match="not a JPEG or PNG file"):
            read_image(tmp_path / "picture.png")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png: no such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [40, 20])  # above the limit Pillow warns, above twice the limit it refuses
def test_pixel_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.fromarray(RGB).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=r"large\.png"):
        read_image(tmp_path / "large.png")


def test_labels_survive_writing(tmp_path: Path) -> None:
    labels = MASK.copy()
    labels[0] = 255
    write_labels(tmp_path / "new" / "labels.png", labels, PALETTE)
    read = read_labels(tmp_path / "new" / "labels.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)
    shown = np.array(Image.open(tmp_path / "new" / "labels.png").convert("RGB"))
    np.testing.assert_array_equal(shown[1:], np.array(PALETTE, np.uint8)[labels[1:]])


def test_more_than_256_classes_become_16_bit_grey(tmp_path: Path) -> None:
    labels = (MASK.astype(np.int16) * 140)[:, :5]
    write_labels(tmp_path / "many.png", labels, ((0, 0, 0),) * 300)
    np.testing.assert_array_equal(read_labels(tmp_path / "many.png"), labels)


def test_grey_masks_of_few_bits_keep_their_values(tmp_path: Path) -> None:
    # two pixels of four bits, four of two, eight of one
    for depth, row, values in ((4, b"\x00\x2f", [2, 15]), (2, b"\x00\x1b", [0, 1, 2, 3]), (1, b"\x00\xa0", [1, 0, 1])):
        path = tmp_path / f"grey{depth}.png"
        write_png(path, depth, 0, row, width=len(values), height=1)
        np.testing.assert_array_equal(read_labels(path), [values])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_coloured_masks_are_refused(tmp_path: Path, mode: str) -> None:
    Image.fromarray(RGB).convert(mode).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=rf"mask\.png: is {mode}, and masks must hold class indices"):
        read_labels(tmp_path / "mask.png")


def test_jpeg_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(ImageError, match="not a PNG file"):
        read_labels(tmp_path / "mask.png")


def test_full_disk_loses_nothing_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.png"
    write_labels(path, MASK, PALETTE)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_labels(path, MASK[:3], PALETTE)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class One(Sequence[Sample]):
    """A dataset of one sample."""

    classes, palette, ignore, channels = ("a",), PALETTE[:1], 255, 3

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: object) -> Any:
        return self.sample


@pytest.mark.parametrize("size", [(36, 48), (12, 16), (24, 31), (42, 42)])
def test_labels_are_resized_by_one_rule(size: tuple[int, int]) -> None:
    """The pixel that a centre falls into; where it falls on an edge, the later one."""
    labels = np.random.default_rng(0).integers(0, 200, (24, 32), dtype=np.uint8)
    places = [[(2 * i + 1) * old // (2 * new) for i in range(new)] for old, new in zip(labels.shape, size, strict=True)]
    wanted = labels[np.ix_(*places)]
    np.testing.assert_array_equal(resize_labels(labels, *size), wanted)
    fitted = Fitted(One(Sample(np.zeros((24, 32, 3), np.uint8), labels, "one")), size)[0]
    np.testing.assert_array_equal(fitted.labels, wanted)


def test_overlay_blends_known_classes_only() -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    image = np.full((2, 2, 3), 100, np.uint8)
    np.testing.assert_array_equal(overlay(image, labels, PALETTE, alpha=0.0), image)
    full = overlay(image, labels, PALETTE, alpha=1.0)
    np.testing.assert_array_equal(full.reshape(4, 3), [*PALETTE, (100, 100, 100)])
    np.testing.assert_array_equal(overlay(image, labels, PALETTE)[0, 0], [178, 50, 50])


def test_legend_shows_every_colour_and_wraps() -> None:
    names = [f"a class with a long name {index}" for index in range(3)]
    wide, narrow = legend(names, PALETTE, 1000), legend(names, PALETTE, 120)
    assert wide.shape[1] == 1000
    assert narrow.shape[1] == 120
    assert narrow.shape[0] > 2 * wide.shape[0]
    for strip in (wide, narrow):
        for colour in PALETTE:
            assert (strip == colour).all(axis=2).sum() > 50
    assert legend([], [], 50).shape[1:] == (50, 3)


def test_picture_with_legend_keeps_the_picture(tmp_path: Path) -> None:
    framed = with_legend(RGB, ["wall"], [(1, 2, 3)])
    np.testing.assert_array_equal(framed[:6, :9], RGB)
    write_image(tmp_path / "framed.png", framed)
    np.testing.assert_array_equal(read_image(tmp_path / "framed.png"), framed)
