"""The compiled library as a user installs it with CMake, and programs built on it."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program with its output captured; OpenVINO's libraries are where its package has them."""
    spec = find_spec("openvino")
    folder = {"SEGMENTER_TRT_OPENVINO": f"{spec.submodule_search_locations[0]}/libs"} if spec is not None else {}
    arguments: dict[str, object] = {"capture_output": True, "text": True, "env": os.environ | folder}
    return subprocess.run([str(part) for part in command], check=False, **(arguments | options))  # type: ignore[call-overload, no-any-return]


def build(source: Path, folder: Path, *options: str) -> None:
    """Configure and build a CMake project; skips where there are no tools for it."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler is installed")
    steps: list[tuple[str | Path, ...]] = [
        ("cmake", "-S", source, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *options),
        ("cmake", "--build", folder, "--parallel", "2"),
    ]
    for step in steps:
        result = call(*step)
        assert result.returncode == 0, result.stdout + result.stderr


def installed(folder: Path) -> Path:
    """Build the project with warnings as errors and install it below `folder`; returns the prefix.

    SEGMENTER_TRT_SDK names a prefix that is there already, to be tested instead.
    """
    if ready := os.environ.get("SEGMENTER_TRT_SDK"):
        return Path(ready)
    build(ROOT, folder / "build", "-DSEGMENTER_TRT_WERROR=ON")
    result = call("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    assert result.returncode == 0, result.stderr
    return folder / "prefix"
