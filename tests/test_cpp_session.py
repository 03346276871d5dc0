"""Sessions in C++ on exported graphs: the Python session's labels to the last one, windows, threads, and errors."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from segmenter.errors import EngineError
from segmenter.files import sha256
from segmenter.preprocess import normalize
from segmenter.window import segment
from segmenter_engines import open_session
from segmenter_engines.export import export
from segmenter_engines.manifest import manifest_path, read_manifest
from tests.cpp_build import run
from tests.networks import small_network
from tests.small_engines import HEIGHTS, PIXELS, RANGED, WIDTHS, H, W, pictures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def libraries() -> Path:
    """OpenVINO's libraries, where its wheel keeps them."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    folder = Path(openvino.__file__).parent / "libs"
    if not any(folder.glob("libopenvino_c.so*")):
        pytest.skip("this OpenVINO brings no C library")
    return folder


class Program:
    """csrc/tests/session_program.cc, which names its tasks."""

    def __init__(self, build: Path, libraries: Path, folder: Path) -> None:
        self.path, self.libraries, self.folder = build / "csrc" / "tests" / "session_program", libraries, folder
        self.said = ""

    def call(
        self, task: str, engine: Path, images: np.ndarray, *more: object, runtime: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        images.tofile(self.folder / "images")
        values = [task, engine, runtime or self.libraries, *images.shape[:3]]
        command = [self.path, *values, self.folder / "images", self.folder / "result", *more]
        return run(*map(str, command), env=os.environ | {"SEGMENTER_TRT_BACKENDS": str(self.folder)})

    def __call__(
        self, task: str, engine: Path, images: np.ndarray, *more: object, dtype: type = np.uint8
    ) -> np.ndarray:
        result = self.call(task, engine, images, *more)
        assert result.returncode == 0, result.stderr
        self.said = result.stdout.strip()
        return np.fromfile(self.folder / "result", dtype)


@pytest.fixture
def program(cpp_library: Path, libraries: Path, tmp_path: Path) -> Program:
    return Program(cpp_library, libraries, tmp_path)


@pytest.mark.parametrize("graph", [RANGED, PIXELS])
def test_sizes_in_a_range_and_pixels_are_the_python_sessions(program: Program, ranged_folder: Path, graph: str) -> None:
    for height, width in ((HEIGHTS[0], WIDTHS[2]), (H - 1, W), (HEIGHTS[2], WIDTHS[0])):
        images = pictures(2, 160, 200)[:, :height, :width].copy()
        labels = program("labels", ranged_folder / graph, images, 1, "")
        with open_session(ranged_folder / graph, "openvino", threads=1) as session:
            np.testing.assert_array_equal(labels.reshape(2, height, width), session(images))


@pytest.mark.parametrize("graph", ["model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx"])
def test_labels_are_the_python_sessions(program: Program, engine_folder: Path, graph: str) -> None:
    for count, threads in ((1, 1), (3, 2)):
        images = pictures(count, seed=count)
        labels = program("labels", engine_folder / graph, images, threads, "")
        with open_session(engine_folder / graph, "openvino", threads=threads) as session:
            assert len(np.unique(labels)) > 1
            np.testing.assert_array_equal(labels.reshape(count, H, W), session(images))


def test_bf16_is_the_python_sessions(program: Program, engine_folder: Path) -> None:
    from segmenter_engines.sessions.openvino import shared_core

    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16 instructions")
    graph, images = engine_folder / "model.fp32.onnx", pictures(2)
    labels = program("labels", graph, images, 1, "bf16")
    with open_session(graph, "openvino", threads=1, precision="bf16") as session:
        np.testing.assert_array_equal(labels.reshape(2, H, W), session(images))


def test_logits_are_the_python_sessions_but_for_rounding(program: Program, engine_folder: Path) -> None:
    graph, images = engine_folder / "model.fp32.onnx", pictures(2)
    logits = program("logits", graph, images, dtype=np.float32)
    with open_session(graph, "openvino", threads=1) as session:
        expected = session.logits(images)
    # two interpolations of three roundings each, of numbers no larger than the largest
    peak = np.abs(expected).max()
    assert np.abs(logits.reshape(expected.shape) - expected).max() <= 12 * np.spacing(peak)


def test_more_than_256_classes_are_int16(program: Program, tmp_path: Path) -> None:
    network = small_network(classes=tuple(f"class {k}" for k in range(300)))
    export(network, tmp_path / "many.onnx", height=64, width=64)
    images = pictures(1, 64, 64)
    labels = program("labels", tmp_path / "many.onnx", images, 1, "", dtype=np.int16)
    with open_session(tmp_path / "many.onnx", "openvino", threads=1) as session:
        np.testing.assert_array_equal(labels.reshape(1, 64, 64), session(images))


@pytest.fixture(scope="module")
def square(engine_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of 56x56 pixels, which is no multiple of its patch."""
    graph = tmp_path_factory.mktemp("square") / "square.onnx"
    export(engine_folder / "checkpoint", graph, height=56, width=56)
    return graph


@pytest.mark.parametrize(
    ("height", "width", "stride", "batch"),
    [(56, 56, 56, 1), (112, 168, 56, 3), (131, 90, 56, 1), (131, 90, 40, 4), (40, 96, 40, 2), (96, 17, 56, 1)],
)
def test_windows_are_the_papers(
    program: Program, square: Path, height: int, width: int, stride: int, batch: int
) -> None:
    image = pictures(1, 136, 200, seed=height)[:, :height, :width].copy()
    labels = program("windows", square, image, 56, stride, batch).reshape(height, width)
    with open_session(square, "openvino", threads=1) as session:
        view = normalize(image, session.spec.preprocess)
        mean = segment(session.network, [(view, False)], (height, width), 56, stride, batch)
    # where two classes are as likely but for rounding, either is right
    best = mean.topk(2, dim=0).values
    clear = ((best[0] - best[1]) > 1e-5).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], mean.argmax(0).numpy()[clear])


def test_eight_threads_agree_with_one(program: Program, engine_folder: Path) -> None:
    program("many", engine_folder / "model.fp32.onnx", pictures(1), 8, 200)
    assert program.said == "0"


def test_memory_does_not_grow(program: Program, engine_folder: Path) -> None:
    program("memory", engine_folder / "model.fp32.onnx", pictures(1), 10_000)
    assert int(program.said) <= 1024  # KiB


def refused(program: Program, engine: Path, images: np.ndarray, *more: object, runtime: Path | None = None) -> str:
    result = program.call("labels", engine, images, *more, runtime=runtime)
    assert result.returncode == 1, result
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def copied(engine_folder: Path, tmp_path: Path) -> Path:
    """The fp32 graph and its manifest, to be changed."""
    graph = tmp_path / "model.onnx"
    for source, copy in (
        (engine_folder / "model.fp32.onnx", graph),
        (manifest_path(engine_folder / "model.fp32.onnx"), manifest_path(graph)),
    ):
        shutil.copy(source, copy)
    manifest = json.loads(manifest_path(graph).read_text())
    manifest_path(graph).write_text(json.dumps(manifest | {"artifact": graph.name}))
    return graph


def test_what_is_refused_is_said_in_one_line(program: Program, copied: Path, tmp_path: Path) -> None:
    images = pictures(1)
    assert "this engine takes 56x72; resize it" in refused(program, copied, pictures(1, 64, 64))
    assert "at most 64; split it" in refused(program, copied, pictures(65))
    assert "precision 'fp64'" in refused(program, copied, images, 1, "fp64")
    missing = refused(program, copied, images, runtime=tmp_path)
    assert "engine openvino: its C library cannot be opened" in missing
    assert "pip install openvino" in missing
    manifest = json.loads(manifest_path(copied).read_text())
    manifest_path(copied).write_text(json.dumps(manifest | {"plugins": ["SegmenterAttention"]}))
    assert "holds SegmenterAttention, which OpenVINO has not" in refused(program, copied, images)
    manifest_path(copied).write_text(json.dumps(manifest | {"patch_size": 8}))
    assert "the graph is not what its manifest says" in refused(program, copied, images)
    manifest_path(copied).write_text(json.dumps(manifest | {"height": [48, 48, 48]}))
    told = refused(program, copied, images[:, :48].copy())
    assert f"the graph takes images [any, 3, {H}, {W}], its manifest says" in told


def test_a_changed_graph_is_refused(program: Program, copied: Path) -> None:
    graph = bytearray(copied.read_bytes())
    graph[len(graph) // 2] ^= 1
    copied.write_bytes(graph)
    manifest = read_manifest(copied, check_hash=False)
    told = refused(program, copied, pictures(1))
    with pytest.raises(EngineError) as python:
        read_manifest(copied)
    assert f"(expected SHA-256 {manifest.sha256}, it has {sha256(copied)}); copy both files again" in told
    assert str(python.value) in told


def test_openvino_is_found_by_its_variable(program: Program, engine_folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("SEGMENTER_TRT_OPENVINO", str(program.libraries))
    images = pictures(1)
    images.tofile(program.folder / "images")
    values = ("labels", engine_folder / "model.fp32.onnx", "", 1, H, W)
    found = run(program.path, *map(str, values), program.folder / "images", program.folder / "result")
    assert found.returncode == 0, found.stderr
