"""Building the C++ library and its tests with CMake, for the tests that run them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program run in the project's folder, its output captured as text."""
    defaults: dict[str, Any] = {"cwd": ROOT, "text": True, "capture_output": True, "check": False}
    return subprocess.run([str(part) for part in command], **(defaults | options))


def succeed(*command: str | Path, **options: Any) -> str:
    """The standard output of a program that must succeed."""
    done = run(*command, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-6000:]}"
    return done.stdout


def clang(program: str) -> str | None:
    """A program of clang 14 or newer, with or without its version in its name."""
    names = [program, *(f"{program}-{version}" for version in range(22, 13, -1))]
    return next((path for path in map(shutil.which, names) if path), None)


def json_headers() -> Path:
    """Folder that holds nlohmann/json.hpp. Skips the test where there is none."""
    wheel = importlib.util.find_spec("nlohmann_json")
    folders = [Path(folder) / "include" for folder in (wheel and wheel.submodule_search_locations) or []]
    for folder in (*folders, Path("/usr/include")):
        if (folder / "nlohmann" / "json.hpp").is_file():
            return folder
    pytest.skip("nlohmann/json.hpp is not installed; pip install nlohmann-json")


def tensorrt_headers() -> Path:
    """Folder of TensorRT's headers: TENSORRT_INCLUDE_DIR, or in a wheel that happens to carry them.

    Skips the test where there are none.
    """
    if named := os.environ.get("TENSORRT_INCLUDE_DIR"):
        return Path(named)
    wheel = importlib.util.find_spec("kernel_lens")
    for place in (wheel and wheel.submodule_search_locations) or ():
        folder = Path(place) / "include" / "tensorrt"
        if (folder / "NvInferRuntime.h").is_file():
            return folder
    pytest.skip("no TensorRT headers here; set TENSORRT_INCLUDE_DIR, or pip install kernel-lens")


def build(folder: Path, *options: str, targets: tuple[str, ...] = ()) -> None:
    """Configure and build the library with its tests. Skips the test where a tool is missing."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler is installed")
    if not any((Path(prefix) / "include/gtest/gtest.h").is_file() for prefix in ("/usr", "/usr/local")):
        pytest.skip("GoogleTest is not installed; apt-get install libgtest-dev")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    checks = ("-DSEGMENTER_TRT_TESTS=ON", "-DSEGMENTER_TRT_WERROR=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    places = (f"-DSEGMENTER_TRT_JSON={json_headers()}", f"-DPython_EXECUTABLE={sys.executable}")
    wanted = ("--target", *targets) if targets else ()
    succeed("cmake", "-S", ROOT, "-B", folder, *generator, *checks, *places, *options)
    succeed("cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1), *wanted)
