"""The library as `cmake --install` leaves it, and programs built on it."""

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.cpp_build import run, succeed


def call(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program; OpenVINO's libraries are where its package has them."""
    spec = find_spec("openvino")
    folders = spec.submodule_search_locations if spec is not None else None
    environment = os.environ | ({"SEGMENTER_TRT_OPENVINO": f"{folders[0]}/libs"} if folders else {})
    return run(*command, **({"env": environment} | options))


def install(build: Path, prefix: Path) -> None:
    """Install what a build folder of the project holds."""
    succeed("cmake", "--install", build, "--prefix", prefix)


def build_program(source: Path, folder: Path, *options: str) -> None:
    """Configure and build somebody's CMake project."""
    succeed("cmake", "-S", source, "-B", folder, *options)
    succeed("cmake", "--build", folder, "--parallel", "2")


def refused(result: subprocess.CompletedProcess[str], message: str, status: int = 2) -> None:
    """Assert that a program ended with a status and said why in one line, which holds `message`, an expression."""
    assert (result.returncode, result.stderr.count("\n")) == (status, 1), result.stderr
    assert re.match(f"error: .*(?:{message})", result.stderr), result.stderr
