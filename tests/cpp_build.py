"""Building the C++ library and its tests with CMake, for the tests that run them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.once import once

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("address,undefined", "thread")
LIBRARIES = "lib64"  # where sanitized builds install them, as some systems do
# all sources of a target in one: headers are read once, not once a source
UNITY = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0")
OPTIONAL_SOURCES = {"jpeg.cc", "png.cc", "kernels_avx2.cc"}  # where the libraries are, and such a processor
_INCLUDED = re.compile(r'^#include "(.+)"$', re.MULTILINE)


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


def require_tidy(folder: Path, parts: tuple[str, ...], *options: str) -> None:
    """See that clang-tidy finds nothing in the sources of some folders of csrc, configured in `folder` with options.

    Skips the test where a tool is missing.
    """
    if (tidy := clang("clang-tidy")) is None:
        pytest.skip("clang-tidy is not installed; apt-get install clang-tidy")
    configure(folder, *UNITY, *options)
    wanted = {path for part in parts for path in (ROOT / "csrc" / part).glob("*.cc")}
    read: dict[Path, set[Path]] = {}
    for entry in json.loads((folder / "compile_commands.json").read_text("utf-8")):
        file = Path(entry["file"])
        joined = "Unity" in file.parts and folder in file.parents
        sources = set(map(Path, _INCLUDED.findall(file.read_text("utf-8")))) if joined else {file}
        # some tests are made of the same sources
        tests = (path for path in sources if path.is_relative_to(ROOT) and "tests" in path.relative_to(ROOT).parts)
        if wanted & sources and not any(tests):
            read[file] = sources
    missed = {path.name for path in wanted.difference(*read.values())}
    assert missed <= OPTIONAL_SOURCES, f"not compiled: {sorted(missed - OPTIONAL_SOURCES)}"
    # clang-tidy looks for .clang-tidy above what it reads, which is no folder of ours; and that includes sources
    checks = (f"--config-file={ROOT / '.clang-tidy'}", "--checks=-bugprone-suspicious-include")
    result = run(tidy, "--quiet", "-p", folder, *checks, *read)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]


def json_headers() -> Path:
    """Folder that holds nlohmann/json.hpp. Skips the test where there is none."""
    wheel = importlib.util.find_spec("nlohmann_json")
    folders = [Path(folder) / "include" for folder in (wheel and wheel.submodule_search_locations) or []]
    for folder in (*folders, Path("/usr/include")):
        if (folder / "nlohmann" / "json.hpp").is_file():
            return folder
    pytest.skip("nlohmann/json.hpp is not installed; pip install nlohmann-json")


def find_tensorrt_headers() -> Path | None:
    """Folder of TensorRT's headers: TENSORRT_INCLUDE_DIR, or in a wheel that happens to carry them."""
    if named := os.environ.get("TENSORRT_INCLUDE_DIR"):
        return Path(named)
    wheel = importlib.util.find_spec("kernel_lens")
    folders = [Path(place) / "include" / "tensorrt" for place in (wheel and wheel.submodule_search_locations) or ()]
    return next((folder for folder in folders if (folder / "NvInferRuntime.h").is_file()), None)


def tensorrt_headers() -> Path:
    """The same, or a skip of the test."""
    if (folder := find_tensorrt_headers()) is None:
        pytest.skip("no TensorRT headers here; set TENSORRT_INCLUDE_DIR, or pip install kernel-lens")
    return folder


def configure(folder: Path, *options: str) -> None:
    """Configure the library with its tests in a folder, which then says how each source is compiled.

    Skips the test where a tool is missing.
    """
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler is installed")
    if not any((Path(prefix) / "include/gtest/gtest.h").is_file() for prefix in ("/usr", "/usr/local")):
        pytest.skip("GoogleTest is not installed; apt-get install libgtest-dev")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    checks = ("-DSEGMENTER_TRT_TESTS=ON", "-DSEGMENTER_TRT_WERROR=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    places = (f"-DSEGMENTER_TRT_JSON={json_headers()}", f"-DPython_EXECUTABLE={sys.executable}")
    succeed("cmake", "-S", ROOT, "-B", folder, *generator, *checks, *places, *options)


def build(folder: Path, *options: str, targets: tuple[str, ...] = ()) -> None:
    """Configure and build the library with its tests. Skips the test where a tool is missing."""
    configure(folder, *options)
    wanted = ("--target", *targets) if targets else ()
    succeed("cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1), *wanted)


def backend_kernels(factory: pytest.TempPathFactory) -> Path | None:
    """Folder of the kernels that the TensorRT backend launches, once for all; None where nothing compiles them."""

    def compile_them(folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        names = ("merge_windows_fp32_planar", "resize", "normalize")
        options = ("--only", *names, "--architectures", "80", "90", "--workers", "1")
        run(sys.executable, "-m", "segmenter_kernels.aot", "--out", folder / "cubins", *options, env=environment)

    found = once(factory, "backend_kernels", compile_them) / "cubins"
    return found if (found / "manifest.json").is_file() else None


def build_sanitized(factory: pytest.TempPathFactory, sanitizers: str) -> Path:
    """Build folder of the C++ tests with sanitizers, once for all; with the TensorRT backend where its headers are."""
    # threads are watched in what has some
    targets = ["thread_tests"] if sanitizers == "thread" else ["unit_tests", "thread_tests"]
    flags = [] if sanitizers == "thread" else [*UNITY]
    flags += ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", f"-DSEGMENTER_TRT_SANITIZE={sanitizers}"]
    # both compilers where there are two, so that both accept all sources; one has each source by itself, as users do
    compiler = None if sanitizers == "thread" else clang("clang++")
    flags += [f"-DCMAKE_CXX_COMPILER={compiler}"] if compiler else []
    if headers := find_tensorrt_headers():
        targets += ["test_tensorrt", "segmenter_trt_tensorrt", "session_program"]
        targets += [] if sanitizers == "thread" else ["test_tensorrt_rtx", "record_launches"]
        kernels = backend_kernels(factory)
        flags += [f"-DSEGMENTER_TRT_CUBINS={kernels}"] if kernels else []
        rtx = os.environ.get("TENSORRT_RTX_INCLUDE_DIR")
        flags += [f"-DTENSORRT_RTX_INCLUDE_DIR={rtx}"] if rtx else []
        flags += [f"-DTENSORRT_INCLUDE_DIR={headers}", f"-DCMAKE_INSTALL_LIBDIR={LIBRARIES}"]
    name = f"cpp_{sanitizers.partition(',')[0]}"  # a comma would part the linker's options
    return once(factory, name, lambda folder: build(folder, *flags, targets=tuple(targets)))
