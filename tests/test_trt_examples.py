"""The programs in csrc/examples, built on the installed library and run on a real engine."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter.images import read_labels
from segmenter_engines.export import export
from segmenter_engines.folder import FP32
from segmenter_engines.sessions import open_engine
from tests.cpp_build import ROOT
from tests.networks import small_network
from tests.sdk import build_program, call
from tests.small_engines import H, W, pictures
from tests.trt_backend import compile_backend, write_plan

pytest.importorskip("openvino", reason="openvino is not installed")
EXAMPLES = ROOT / "csrc" / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    strict = "-Wall -Wextra -Werror"
    flags = (f"-DCMAKE_CXX_FLAGS={strict}", f"-DCMAKE_C_FLAGS={strict} -pedantic")
    build_program(EXAMPLES, folder, f"-DCMAKE_PREFIX_PATH={sdk}", *flags)
    return folder


@pytest.fixture
def expected(engine_folder: Path, tmp_path: Path) -> np.ndarray:
    """Labels of a picture twice the engine's size, which is written as picture.ppm."""
    picture = pictures(1, 2 * H, 2 * W, seed=3)[0]
    Image.fromarray(picture).save(tmp_path / "picture.ppm")
    fitted = np.asarray(Image.fromarray(picture).resize((W, H), Image.Resampling.BILINEAR))
    with open_engine(engine_folder / FP32, "openvino", threads=1) as session:
        return session(fitted)


def test_cpp(programs: Path, engine_folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    result = call(programs / "label_image", engine_folder / FP32, tmp_path / "picture.ppm", tmp_path / "labels.pgm")
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.pgm")), expected)
    result = call(programs / "label_image", engine_folder / "none.onnx", tmp_path / "picture.ppm", tmp_path / "x.pgm")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "no such engine file" in result.stderr


def test_c(programs: Path, engine_folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    result = call(programs / "label_image_c", engine_folder / FP32, tmp_path / "picture.ppm")
    assert result.returncode == 0, result.stderr
    counts = [int(line.split()[0]) for line in result.stdout.splitlines()]
    assert counts == np.bincount(expected.ravel(), minlength=5).tolist()
    for head in (b"P6 72 56 15\n", b"P6 72 56 65535\n", b"P6 72 56\n"):
        (tmp_path / "other.ppm").write_bytes(head + bytes(72 * 56 * 6))
        result = call(programs / "label_image_c", engine_folder / FP32, tmp_path / "other.ppm")
        assert (result.returncode, result.stdout) == (2, "")
        assert "other.ppm: wanted a binary PPM of 8 bits, at most 16384x16384 pixels" in result.stderr


def test_server(programs: Path, engine_folder: Path) -> None:
    frames = pictures(40, seed=4)
    with open_engine(engine_folder / FP32, "openvino", threads=1) as session:
        labels = session(frames)
        wanted = {f"{i} {session.classes[np.bincount(frame.ravel()).argmax()]}" for i, frame in enumerate(labels)}
    result = call(programs / "server", engine_folder / FP32, "3", input=frames.tobytes(), text=False)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.decode().splitlines()) == wanted
    # a frame that ends early: those before it are answered, and the program fails
    cut = call(programs / "server", engine_folder / FP32, "2", input=frames[:3].tobytes()[:-1], text=False)
    assert cut.returncode == 2
    assert cut.stderr.decode() == f"error: frame 2: is cut short, {H * W * 3 - 1} of {H * W * 3} bytes\n"
    assert len(cut.stdout.splitlines()) == 2


def test_server_answers_no_frame_of_labels_beyond_the_classes(programs: Path, tmp_path: Path) -> None:
    compile_backend(tmp_path)
    plan = write_plan(tmp_path, classes=["wall", "floor"], palette=[[0, 0, 0], [255, 255, 255]])
    frames = np.zeros((3, 4, 6, 3), np.uint8)
    frames[:, :, :, 0] = np.array([1, 200, 0])[:, None, None]
    environment = os.environ | {"SEGMENTER_TRT_BACKENDS": str(tmp_path)}
    result = call(programs / "server", plan, "1", input=frames.tobytes(), text=False, env=environment)
    assert result.stdout.decode().splitlines() == ["0 floor", "2 wall"]
    assert result.stderr.decode() == "frame 1: class 200, and the manifest names 2; make the engine again\n"


def test_python(engine_folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    without_torch = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    files = (engine_folder / FP32, tmp_path / "picture.ppm", tmp_path / "labels.png")
    result = call(sys.executable, "-c", without_torch, EXAMPLES / "label_image.py", *files)
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png"))[::2, ::2], expected)
    assert len(result.stdout.splitlines()) == 5
    damaged, whole = tmp_path / "damaged.png", (tmp_path / "labels.png").read_bytes()
    for data in (b"no picture", whole[: len(whole) // 2], whole[:20]):
        damaged.write_bytes(data)
        files = (engine_folder / FP32, damaged, tmp_path / "x.png")
        result = call(sys.executable, EXAMPLES / "label_image.py", *files)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert result.stderr.startswith(f"error: {damaged}: cannot be read (")


def test_python_writes_labels_of_more_than_256_classes(tmp_path: Path) -> None:
    network = small_network(seed=3, classes=tuple(f"class {k}" for k in range(300)))
    export(network, tmp_path / "many.onnx", height=H, width=W)
    picture = Image.fromarray(pictures(1, 2 * H, 2 * W, seed=3)[0])
    picture.save(tmp_path / "picture.png")
    with open_engine(tmp_path / "many.onnx", "openvino", threads=1) as session:
        expected = session(np.asarray(picture.resize((W, H), Image.Resampling.BILINEAR)))
    assert expected.max() >= 256
    files = (tmp_path / "many.onnx", tmp_path / "picture.png", tmp_path / "labels.png")
    result = call(sys.executable, EXAMPLES / "label_image.py", *files)
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.png")[::2, ::2], expected)
