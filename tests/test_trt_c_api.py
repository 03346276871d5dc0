"""The C API through ctypes, as another language calls it, and what the shared library shows of itself."""

import ctypes as c
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmenter_engines.folder import FP32
from segmenter_engines.sessions import open_engine
from tests.cpp_build import ROOT, clang
from tests.small_engines import H, W, pictures

pytest.importorskip("openvino", reason="openvino is not installed")
segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")
pytestmark = pytest.mark.slow

OK, MANIFEST, ARTIFACT, UNAVAILABLE, INPUT, RUN = range(6)
HEADER = ROOT / "csrc" / "include" / "segmenter_trt" / "c_api.h"


class EngineOptions(c.Structure):
    _fields_ = (
        ("size", c.c_size_t),
        *((name, c.c_char_p) for name in ("backend", "precision", "runtime", "plugins")),
        *((name, c.c_int32) for name in ("threads", "streams", "device", "require_verified")),
    )


class Facts(c.Structure):
    _fields_ = (
        ("size", c.c_size_t),
        *((name, c.c_int64 * 3) for name in ("height", "width", "batch")),
        *((name, c.c_int64) for name in ("classes", "patch_size", "label_bytes")),
        *((name, c.c_char_p) for name in ("engine", "runtime", "device", "precision", "model", "warning")),
    )


@pytest.fixture(scope="module")
def library(sdk: Path) -> c.CDLL:
    library = c.CDLL(str(sdk / "lib" / "libsegmenter_trt_c.so.1"))
    library.segmenter_trt_last_error.restype = c.c_char_p
    library.segmenter_trt_version.restype = c.c_char_p
    for close in (library.segmenter_trt_engine_close, library.segmenter_trt_session_close):
        close.restype, close.argtypes = None, [c.c_void_p]
    return library


@pytest.fixture(scope="module")
def options() -> EngineOptions:
    from segmenter_trt.runtimes import folder

    return EngineOptions(c.sizeof(EngineOptions), runtime=str(folder("openvino")).encode(), threads=1)


@pytest.fixture(scope="module")
def engine(library: c.CDLL, engine_folder: Path, options: EngineOptions) -> Any:
    engine = c.c_void_p()
    path = str(engine_folder / FP32).encode()
    assert library.segmenter_trt_engine_open(path, c.byref(options), c.byref(engine)) == OK, error(library)
    yield engine
    library.segmenter_trt_engine_close(engine)


@pytest.fixture
def session(library: c.CDLL, engine: c.c_void_p) -> Any:
    session = c.c_void_p()
    assert library.segmenter_trt_session_open(engine, None, c.byref(session)) == OK, error(library)
    yield session
    library.segmenter_trt_session_close(session)


def error(library: c.CDLL) -> str:
    return str(library.segmenter_trt_last_error().decode())


def address(array: np.ndarray) -> c.c_void_p:
    return c.c_void_p(array.ctypes.data)


def sides(*values: int) -> tuple[c.c_int64, ...]:
    return tuple(map(c.c_int64, values))


def test_labels_masks_and_logits(library: c.CDLL, session: c.c_void_p, engine_folder: Path) -> None:
    images = pictures(2, seed=5)
    python = segmenter_trt.Session(segmenter_trt.Engine(engine_folder / FP32, threads=1))
    labels = np.full((2, H, W), 99, np.uint8)
    given = (session, address(images), *sides(2, H, W))
    assert library.segmenter_trt_session_run(*given, address(labels), c.c_size_t(labels.nbytes)) == OK
    np.testing.assert_array_equal(labels, python.run(images))
    with open_engine(engine_folder / FP32, "openvino", threads=1) as plain:
        np.testing.assert_array_equal(labels, plain(images))

    masks, shape = c.POINTER(c.c_float)(), (c.c_int64 * 4)()
    assert library.segmenter_trt_session_masks(*given, c.byref(masks), shape) == OK
    np.testing.assert_array_equal(np.ctypeslib.as_array(masks, tuple(shape)), python.masks(images))

    logits = np.empty((2, 5, H, W), np.float32)
    assert library.segmenter_trt_session_logits(*given, address(logits), c.c_size_t(logits.nbytes)) == OK
    np.testing.assert_array_equal(logits, python.logits(images))


def test_resize_and_windows(library: c.CDLL, session: c.c_void_p, engine_folder: Path) -> None:
    image = pictures(1, 48, 64, seed=6)[0]
    resized = np.empty((H, W, 3), np.uint8)
    status = library.segmenter_trt_resize(address(image), *sides(1, 48, 64), address(resized), *sides(H, W), 1)
    assert status == OK
    np.testing.assert_array_equal(resized, segmenter_trt.resize(image, H, W))
    labels = np.empty((1, H, W), np.uint8)
    fitted = (session, address(image), *sides(1, 48, 64), address(labels), *sides(H, W), c.c_size_t(labels.nbytes))
    assert library.segmenter_trt_session_run_resized(*fitted) == OK, error(library)
    python = segmenter_trt.Session(segmenter_trt.Engine(engine_folder / FP32, threads=1))
    np.testing.assert_array_equal(labels[0], python.run(resized))
    assert library.segmenter_trt_session_run_resized(*fitted[:-1], c.c_size_t(labels.nbytes - 1)) == INPUT
    assert "wanted 4032, for [1, 56, 72]" in error(library)
    labels = np.empty((48, 64), np.uint8)
    windows = (session, address(image), *sides(48, 64, 56, 0, 0), address(labels), c.c_size_t(labels.nbytes))
    # this engine's images are no squares, and windows are
    assert library.segmenter_trt_session_sliding_window(*windows) == INPUT
    assert "this engine takes 56x72" in error(library)


def test_facts_and_classes(library: c.CDLL, engine: c.c_void_p) -> None:
    facts = Facts(c.sizeof(Facts))
    assert library.segmenter_trt_engine_facts(engine, c.byref(facts)) == OK
    assert (list(facts.height), list(facts.width)) == ([H] * 3, [W] * 3)
    assert (facts.classes, facts.patch_size, facts.label_bytes) == (5, 16, 1)
    assert (facts.engine, facts.device, facts.precision) == (b"openvino", b"cpu", b"fp32")
    assert facts.warning.startswith(b"not verified in openvino-fp32; run")
    older = Facts(Facts.classes.offset, classes=99)
    assert library.segmenter_trt_engine_facts(engine, c.byref(older)) == OK
    assert older.classes == 99  # beyond what its caller knows, nothing is written
    name, colour = c.c_char_p(), (c.c_uint8 * 3)()
    assert library.segmenter_trt_engine_class(engine, *sides(2), c.byref(name), colour) == OK
    assert name.value == b"house"
    assert library.segmenter_trt_engine_class(engine, *sides(5), None, None) == INPUT
    assert error(library) == "class 5: wanted 0 to 4"


def test_mistakes_are_statuses(
    library: c.CDLL,
    engine: c.c_void_p,
    session: c.c_void_p,
    engine_folder: Path,
    tmp_path: Path,
    options: EngineOptions,
) -> None:
    images, labels = np.zeros((1, H, W, 3), np.uint8), np.zeros((1, H, W), np.uint8)

    def run(pixels: c.c_void_p | None, shape: tuple[int, ...], to: c.c_void_p | None, size: int) -> int:
        return int(library.segmenter_trt_session_run(session, pixels, *sides(*shape), to, c.c_size_t(size)))

    good = (address(images), (1, H, W), address(labels), labels.nbytes)
    assert run(*good) == OK
    for index, (bad, message) in {
        0: (None, "pixels is NULL"),
        1: ((1, H + 1, W), "labels of 4032 bytes: wanted 4104"),
        2: (None, "labels is NULL"),
        3: (labels.nbytes - 1, "labels of 4031 bytes: wanted 4032, for [1, 56, 72] of 1 bytes each"),
    }.items():
        arguments = [*good[:index], bad, *good[index + 1 :]]
        assert run(*arguments) == INPUT  # type: ignore[arg-type]
        assert error(library).startswith(message)
    for shape in ((1, 1 << 40, 1 << 40), (-1, H, W), (0, H, W)):
        assert run(address(images), shape, address(labels), 0) == INPUT
    out = c.c_void_p(1)

    def opened(path: Path | None, options: EngineOptions | None = None) -> int:
        name = None if path is None else str(path).encode()
        status = library.segmenter_trt_engine_open(name, None if options is None else c.byref(options), c.byref(out))
        assert out.value is None
        return int(status)

    assert opened(tmp_path / "none.onnx") == ARTIFACT
    assert "no such engine file" in error(library)
    assert opened(None) == INPUT
    strict = EngineOptions(c.sizeof(EngineOptions), runtime=options.runtime, threads=1, require_verified=1)
    assert opened(engine_folder / FP32, strict) == ARTIFACT
    assert "not verified in openvino-fp32" in error(library)
    assert opened(engine_folder / FP32, EngineOptions(1000)) == INPUT
    assert "is the library older than its header?" in error(library)
    assert opened(engine_folder / FP32, EngineOptions(c.sizeof(EngineOptions), backend=b"none")) == INPUT
    nowhere = EngineOptions(c.sizeof(EngineOptions), runtime=str(tmp_path).encode())
    assert opened(engine_folder / FP32, nowhere) == UNAVAILABLE
    shutil.copy(engine_folder / FP32, tmp_path / "alone.onnx")
    assert opened(tmp_path / "alone.onnx") == MANIFEST
    enqueue = (session, address(images), *sides(1, H, W), address(labels), c.c_size_t(labels.nbytes), None)
    assert library.segmenter_trt_session_enqueue(*enqueue) == UNAVAILABLE
    library.segmenter_trt_engine_close(None)
    library.segmenter_trt_session_close(None)


def test_errors_are_each_threads_own(library: c.CDLL) -> None:
    def fail(index: int) -> str:
        library.segmenter_trt_engine_open(f"/nowhere/{index}".encode(), None, c.byref(c.c_void_p()))
        return error(library)

    with ThreadPoolExecutor(4) as pool:
        assert all(f"/nowhere/{i}:" in text for i, text in enumerate(pool.map(fail, range(64))))


def test_a_session_outlives_its_engine(library: c.CDLL, engine_folder: Path, options: EngineOptions) -> None:
    engine, session = c.c_void_p(), c.c_void_p()
    path = str(engine_folder / FP32).encode()
    assert library.segmenter_trt_engine_open(path, c.byref(options), c.byref(engine)) == OK
    assert library.segmenter_trt_session_open(engine, None, c.byref(session)) == OK
    library.segmenter_trt_engine_close(engine)
    images, labels = np.zeros((1, H, W, 3), np.uint8), np.full((1, H, W), 99, np.uint8)
    given = (session, address(images), *sides(1, H, W), address(labels), c.c_size_t(labels.nbytes))
    assert library.segmenter_trt_session_run(*given) == OK
    assert labels.max() < 5
    library.segmenter_trt_session_close(session)


def declared() -> set[str]:
    return set(re.findall(r"(segmenter_trt_\w+)\(", re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)))


def tool(name: str) -> Callable[..., str]:
    if (path := clang(name) if name == "clang" else shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return lambda *arguments: (
        subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=True).stdout
    )


def test_the_library_shows_its_functions_alone(sdk: Path, library: c.CDLL) -> None:
    path = sdk / "lib" / "libsegmenter_trt_c.so"
    shown = {line.split()[-1].partition("@")[0] for line in tool("nm")("-D", "--defined-only", path).splitlines()}
    assert {name for name in shown if name != "SEGMENTER_TRT_1"} == declared()
    version = int(re.search(r"SEGMENTER_TRT_C_ABI (\d+)", HEADER.read_text()).group(1))  # type: ignore[union-attr]
    assert f"[libsegmenter_trt_c.so.{version}]" in tool("readelf")("-d", path)
    assert library.segmenter_trt_c_abi() == version
    assert library.segmenter_trt_version().decode() == segmenter_trt.__version__


@pytest.mark.parametrize("name", ["gcc", "clang", "g++"])
def test_the_header_is_plain_c(name: str, tmp_path: Path) -> None:
    source = tmp_path / ("header.cc" if name == "g++" else "header.c")
    source.write_text('#include "segmenter_trt/c_api.h"\nint main(void) { return segmenter_trt_c_abi() == 0; }\n')
    standard = "-std=c++11" if name == "g++" else "-std=c11"
    flags = (standard, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT / 'csrc' / 'include'}")
    tool(name)(*flags, source)
