"""segmenter_trt_cli: hostile pictures, and those a build cannot read, are refused in one line."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segmenter_engines.folder import FP32
from tests.cpp_build import ROOT, succeed
from tests.sdk import build_program, call, refused
from tests.small_engines import H, W, pictures

pytest.importorskip("openvino", reason="openvino is not installed")
pytestmark = pytest.mark.slow


def png(width: int, height: int, data: bytes, depth: int = 8, colours: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def encoded(suffix: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pictures(1)[0]).convert(mode).save(file, format={"jpg": "JPEG", "png": "PNG", "ppm": "PPM"}[suffix])
    return file.getvalue()


HOSTILE = {
    "empty.ppm": (b"", "not of a format this build reads"),
    "text.png": (b"this is no picture", "not of a format this build reads"),
    "header.ppm": (b"P6\n# a comment", "its header is cut short"),
    "letters.ppm": (b"P6\nwide high 255\n", "its header is cut short"),
    "zero.ppm": (b"P6\n0 5\n255\n", "it has no pixels"),
    "huge.ppm": (b"P6\n999999999 999999999\n255\n", "wanted at most 89478485 in all"),
    "endless.ppm": (b"P6\n" + b"9" * 400 + b" 1\n255\n", "it has|header|values"),
    "deep.ppm": (b"P6\n1 1\n65535\nabcdef", "its values end at 65535, wanted 255"),
    "cut.ppm": (encoded("ppm")[:-1], "it is cut short; convert it again"),
    "cut.png": (encoded("png")[:-40], "it is cut short; convert it again"),
    "start.png": (encoded("png")[:20], "it is cut short"),
    "flipped.png": (bytes(byte ^ (0xFF if index == 100 else 0) for index, byte in enumerate(encoded("png"))), ""),
    "zero.png": (png(0, 5, b""), "[Zz]ero|Invalid|no pixels"),
    "huge.png": (png(2**31 - 1, 2**31 - 1, b""), "limit|Invalid|wanted at most"),
    "large.png": (png(10_000, 10_000, b""), "wanted at most 89478485 in all"),
    "short.png": (png(W, H, b"\0" * 100), ""),
    "deep.png": (png(1, 1, b"\0" * 7, depth=16), "16 bits a channel"),
    "alpha.png": (encoded("png", "RGBA"), "alpha channel"),
    "cut.jpg": (encoded("jpg")[:-200], "[Pp]remature.*; convert it again, or replace it if it is damaged"),
    "start.jpg": (encoded("jpg")[:30], ""),
    "cmyk.jpg": (encoded("jpg", "CMYK"), "4 channels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused_and_the_rest_labelled(
    cli: Any, formats: set[str], tmp_path: Path, name: str
) -> None:
    if {"jpg": "jpeg"}.get(Path(name).suffix[1:], Path(name).suffix[1:]) not in formats:
        pytest.skip(f"this build does not read {name}")
    data, message = HOSTILE[name]
    (tmp_path / name).write_bytes(data)
    Image.fromarray(pictures(1)[0]).save(tmp_path / "well.ppm")
    result = cli(tmp_path, "--out", tmp_path / "out")
    refused(result, f"{tmp_path / name}: .*({message})", status=1)
    assert [path.stem for path in (tmp_path / "out" / "labels").iterdir()] == ["well"]


def test_a_build_without_libpng_and_libjpeg_says_so(sdk: Path, engine_folder: Path, tmp_path: Path) -> None:
    source, build, images = (tmp_path / name for name in ("source", "build", "images"))
    for folder in (source, images):
        folder.mkdir()
    (source / "CMakeLists.txt").write_text(f"""
cmake_minimum_required(VERSION 3.22)
project(tool_alone LANGUAGES CXX)
include(GNUInstallDirs)
find_package(segmenter_trt CONFIG REQUIRED)
add_library(segmenter_trt_core ALIAS segmenter_trt::segmenter_trt)
add_library(segmenter_trt_options INTERFACE)
add_subdirectory({ROOT / "csrc" / "cli"} cli)
""")
    without = ("-DCMAKE_DISABLE_FIND_PACKAGE_PNG=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_JPEG=ON")
    options = (f"-DCMAKE_PREFIX_PATH={sdk}", *without, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    build_program(source, build, *options)
    said = succeed("cmake", "-S", source, "-B", build)
    assert re.search(r"segmenter_trt_cli: reads and writes no PNG, .*; install libpng-dev", said), said
    assert re.search(r"segmenter_trt_cli: reads no JPEG, .*; install libjpeg-dev", said), said

    for name in ("well.ppm", "photo.png", "snap.jpg"):
        Image.fromarray(pictures(1)[0]).save(images / name)
    program = (build / "cli" / "segmenter_trt_cli", engine_folder / FP32)
    result = call(*program, images, "--out", tmp_path / "out", "--threads", "1")
    assert result.returncode == 1, result.stderr
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["well.pgm"]
    for line, (name, library) in zip(
        result.stderr.splitlines(), (("photo.png", "libpng"), ("snap.jpg", "libjpeg")), strict=True
    ):
        assert line == (
            f"error: {images / name}: this segmenter_trt_cli was built without {library}, which reads it; install"
            f" {library}-dev and build it again, or convert the picture to ppm"
        )
