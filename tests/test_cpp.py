"""The C++ tests: built plainly and with sanitizers, fuzzed for a few seconds, and read by clang-tidy."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.cpp_build import (
    ROOT,
    SANITIZERS,
    build_sanitized,
    clang,
    json_headers,
    require_tidy,
    run,
    succeed,
)

pytestmark = pytest.mark.slow


def pass_all(folder: Path, onnx: Path) -> str:
    """Run a build's tests, the address of an exported graph among what they know."""
    environment = os.environ | {"SEGMENTER_TRT_TEST_ONNX": str(onnx)}
    result = run("ctest", "--test-dir", folder, "--output-on-failure", "--verbose", env=environment)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr
    return result.stdout


def test_the_library_does_what_its_tests_say(cpp_library: Path, engine_folder: Path) -> None:
    output = pass_all(cpp_library, engine_folder / "model.fp32.onnx")
    for suite in ("Manifest", "SessionTest", "SlidingWindowTest", "AllocationTest", "Sha256"):
        assert f"tests from {suite}" in output or f"test from {suite}" in output
    assert "SKIPPED" not in output


@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_sanitizers_find_nothing(
    sanitizers: str, engine_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = build_sanitized(tmp_path_factory, sanitizers)
    environment = os.environ | {"SEGMENTER_TRT_TEST_ONNX": str(engine_folder / "model.fp32.onnx")}
    for program in ("thread_tests",) if sanitizers == "thread" else ("unit_tests", "thread_tests"):
        result = run(folder / "csrc" / "tests" / program, env=environment)
        assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]


def test_fuzzing_the_manifest_finds_nothing(engine_folder: Path, tmp_path: Path) -> None:
    compiler = clang("clang++")
    if compiler is None:
        pytest.skip("clang++ is not installed; apt-get install clang")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for manifest in engine_folder.glob("*.json"):
        shutil.copy(manifest, corpus)
    program, joined = tmp_path / "fuzz_manifest", tmp_path / "joined.cc"  # headers are read once
    parts = ("manifest", "manifest_fields", "manifest_json")
    sources = (ROOT / "csrc/tests/fuzz_manifest.cc", *(ROOT / f"csrc/src/{part}.cc" for part in parts))
    joined.write_text("".join(f'#include "{source}"\n' for source in sources), encoding="utf-8")
    flags = ("-std=c++20", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    includes = ("-I", ROOT / "csrc/include", "-isystem", json_headers())
    compiled = run(compiler, *flags, *includes, joined, "-o", program)
    assert compiled.returncode == 0, compiled.stderr
    # of single allocations: the peak that -rss_limit_mb judges begins as this process's own, which a child inherits
    limits = ("-max_total_time=5", "-timeout=5", "-max_len=65536", "-rss_limit_mb=0", "-malloc_limit_mb=1024")
    fuzzed = run(program, "-seed=1", *limits, corpus, cwd=tmp_path)
    assert fuzzed.returncode == 0, fuzzed.stderr[-4000:]


def test_clang_tidy_finds_nothing(tmp_path: Path) -> None:
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    # pybind11 has others optimised while they are linked, with a flag of g++'s that clang does not take
    options = ("-DSEGMENTER_TRT_PYTHON=ON", "-DCMAKE_BUILD_TYPE=Debug", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    require_tidy(tmp_path, ("bindings", "cli", "src"), *options)


def test_clang_format_changes_nothing() -> None:
    found = filter(None, map(shutil.which, ("clang-format-14", "clang-format")))
    formatter = next((path for path in found if " version 14." in succeed(path, "--version")), None)
    if formatter is None:
        pytest.skip("clang-format 14 is not installed, and others format otherwise; apt-get install clang-format-14")
    sources = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".c", ".cc", ".h")]
    assert sources
    result = run(formatter, "--dry-run", "--Werror", *sources)
    assert result.returncode == 0, result.stderr[-6000:]
    # it leaves text as it is
    lines = ((path, *each) for path in sources for each in enumerate(path.read_text("utf-8").splitlines(), 1))
    assert [f"{path}:{number}" for path, number, line in lines if len(line) > 120] == []


def test_missing_json_headers_are_named_and_found_once_they_are_there(tmp_path: Path) -> None:
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    if any((Path(prefix) / "include/nlohmann/json.hpp").is_file() for prefix in ("/usr", "/usr/local")):
        pytest.skip("the system has nlohmann/json.hpp")

    def configured(python: str, *options: str) -> str:
        environment = os.environ | {"PATH": f"{tmp_path / python / 'bin'}:{os.environ['PATH']}"}
        absent = "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"
        result = run("cmake", "-S", ROOT, "-B", tmp_path / "build", absent, *options, env=environment)
        return "" if result.returncode == 0 else " ".join(result.stderr.split())

    for python in ("first", "second"):
        succeed(sys.executable, "-m", "venv", "--without-pip", tmp_path / python)
    assert "nlohmann/json.hpp: not found; pip install nlohmann-json" in configured("first")
    # the same folder of CMake's, with the wheel installed in another Python than before
    (packages,) = (tmp_path / "second" / "lib").glob("python*/site-packages")
    headers = packages / "nlohmann_json" / "include"
    (headers / "nlohmann").mkdir(parents=True)
    (headers / "nlohmann" / "json.hpp").touch()
    (packages / "nlohmann_json" / "__init__.py").touch()
    assert configured("second") == ""
    # and with it gone
    (headers / "nlohmann" / "json.hpp").unlink()
    assert "nlohmann/json.hpp: not found; pip install nlohmann-json" in configured("second")
    assert f"not found in SEGMENTER_TRT_JSON, {headers}; pip" in configured("second", f"-DSEGMENTER_TRT_JSON={headers}")
