"""The TensorRT backend in C++, on a driver and a TensorRT that need no GPU: its own tests, and an engine through it."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from segmenter.config import Preprocess
from segmenter.files import sha256
from segmenter_engines.manifest import PIXELS, Manifest
from tests.cpp_build import (
    LIBRARIES,
    SANITIZERS,
    backend_kernels,
    build_sanitized,
    require_tidy,
    run,
    tensorrt_headers,
)
from tests.test_plan_checks import plan_bytes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def headers() -> Path:
    return tensorrt_headers()


def variables(folder: Path) -> dict[str, str]:
    """The environment in which the fakes of a build are the machine's driver and TensorRT."""
    fakes = folder / "csrc" / "tensorrt" / "tests" / "fakes"
    return os.environ | {
        "LD_LIBRARY_PATH": str(fakes),
        "SEGMENTER_TRT_TENSORRT": str(fakes),
        "SEGMENTER_TRT_BACKENDS": str(folder / "csrc" / "tensorrt"),
        "TSAN_OPTIONS": "halt_on_error=1",
    }


@pytest.fixture(scope="module", params=SANITIZERS)
def folder(request: pytest.FixtureRequest, headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sanitized(tmp_path_factory, request.param)


def test_every_path_of_the_backend(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    result = run(folder / "csrc" / "tensorrt" / "tests" / "test_tensorrt", env=variables(folder))
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    assert "[  PASSED  ]" in result.stdout
    # of pictures on the GPU, where nothing compiles kernels
    assert "[  SKIPPED ]" not in result.stdout or backend_kernels(tmp_path_factory) is None


def test_graphs_of_tensorrt_rtx(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = build_sanitized(tmp_path_factory, SANITIZERS[0])
    program = folder / "csrc" / "tensorrt" / "tests" / "test_tensorrt_rtx"
    if not program.exists():
        pytest.skip(f"{headers}: older than TensorRT 10.11; set TENSORRT_RTX_INCLUDE_DIR, or take later ones")
    result = run(program, env=variables(folder))
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    assert "[  PASSED  ] 3 tests" in result.stdout


def test_clang_tidy_finds_nothing(headers: Path, tmp_path: Path) -> None:
    require_tidy(tmp_path, ("cuda", "launch", "tensorrt"), f"-DTENSORRT_INCLUDE_DIR={headers}")


def write_plan(path: Path, version: str, words: str = "masks") -> Path:
    """A plan of the fake TensorRT: labels are the red values modulo 5."""
    header = plan_bytes(tag=b"ftrt", version=[int(part) for part in version.split(".")])[:32]
    path.write_bytes(header + f"fake 4 64 64 5 8 {words}".encode())
    Manifest(
        artifact=path.name,
        kind="plan",
        engine="tensorrt",
        precision="fp16",
        sha256=sha256(path),
        source={},
        model="fake",
        patch_size=8,
        input=PIXELS,
        height=(8, 16, 64),
        width=(8, 24, 64),
        batch=(1, 1, 4),
        outputs=("labels", "masks"),
        classes=("a", "b", "c", "d", "e"),
        palette=((0, 0, 0),) * 5,
        preprocess=Preprocess(),
        command="segmenter build",
        versions={"tensorrt": version},
        machine="somewhere",
        compute_capabilities=("8.0+",),
    ).write(path)
    return path


def version_of(headers: Path) -> str:
    lines = (headers / "NvInferVersion.h").read_text(encoding="utf-8").splitlines()
    numbers = dict(line.split()[1:3] for line in lines if line.startswith("#define TRT_M"))
    return f"{numbers['TRT_MAJOR_ENTERPRISE']}.{numbers['TRT_MINOR_ENTERPRISE']}.1.48"


def test_an_engine_opens_a_plan_through_the_backends_own_library(folder: Path, headers: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "model.plan", version_of(headers))
    images = np.random.default_rng(0).integers(0, 250, (3, 16, 24, 3), dtype=np.uint8)
    images.tofile(tmp_path / "images")
    program = folder / "csrc" / "tests" / "session_program"
    places = (*map(str, images.shape[:3]), tmp_path / "images", tmp_path / "result")
    many = run(program, "many", plan, "", *places, "4", "20", env=variables(folder))
    assert many.returncode == 0, (many.stdout + many.stderr)[-4000:]
    once = run(program, "labels", plan, "", *places, env=variables(folder))
    assert once.returncode == 0, (once.stdout + once.stderr)[-4000:]
    labels = np.fromfile(tmp_path / "result", np.uint8).reshape(images.shape[:3])
    np.testing.assert_array_equal(labels, images[..., 0] % 5)
    # scores that are no numbers: an image whose first pixel is 255
    images[1, 0, 0] = 255
    images.tofile(tmp_path / "images")
    refused = run(program, "labels", plan, "", *places, env=variables(folder))
    assert refused.returncode != 0
    assert "scores that are no numbers" in refused.stderr
    # another version of TensorRT than built it
    other = write_plan(tmp_path / "other.plan", "10.0.0.1")
    refused = run(program, "labels", other, "", *places, env=variables(folder))
    assert f"built with tensorrt 10.0.0.1, this is {version_of(headers).partition('.')[0]}." in refused.stderr


def test_an_installed_backend_is_found_from_the_programs_folder(folder: Path, headers: Path, tmp_path: Path) -> None:
    installed = run("cmake", "--install", folder, "--prefix", tmp_path, "--component", "runtime")
    assert installed.returncode == 0, installed.stderr
    assert (tmp_path / LIBRARIES / "libsegmenter_trt_tensorrt.so").is_file()
    (tmp_path / "bin").mkdir()
    program = shutil.copy(folder / "csrc" / "tests" / "session_program", tmp_path / "bin")
    plan = write_plan(tmp_path / "model.plan", version_of(headers))
    images = np.random.default_rng(0).integers(0, 250, (1, 16, 24, 3), dtype=np.uint8)
    images.tofile(tmp_path / "images")
    environment = variables(folder)
    del environment["SEGMENTER_TRT_BACKENDS"]
    places = ("1", "16", "24", tmp_path / "images", tmp_path / "result")
    # a variable that is empty is as one that is not set
    for more in ({}, {"SEGMENTER_TRT_BACKENDS": ""}):
        result = run(program, "labels", plan, "", *places, env=environment | more)
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
        labels = np.fromfile(tmp_path / "result", np.uint8).reshape(images.shape[:3])
        np.testing.assert_array_equal(labels, images[..., 0] % 5)


def test_without_a_driver_it_says_so(folder: Path, headers: Path, tmp_path: Path) -> None:
    if (Path("/usr/lib/x86_64-linux-gnu") / "libcuda.so.1").exists():
        pytest.skip("this machine has an NVIDIA driver")
    plan = write_plan(tmp_path / "model.plan", version_of(headers))
    environment = variables(folder)
    del environment["LD_LIBRARY_PATH"]
    images = np.zeros((1, 16, 24, 3), np.uint8)
    images.tofile(tmp_path / "images")
    places = ("1", "16", "24", tmp_path / "images", tmp_path / "result")
    result = run(folder / "csrc" / "tests" / "session_program", "labels", plan, "", *places, env=environment)
    assert result.returncode != 0
    assert "no NVIDIA driver here (libcuda.so.1 not found)" in result.stderr
