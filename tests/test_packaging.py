"""What a user installs: the packages' layers, the C++ library, the source distribution, and builds that cannot work."""

import ast
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from segmenter.version import __version__
from tests.cpp_build import ROOT, json_headers, run, succeed

PACKAGES = {
    "segmenter": ROOT / "segmenter",
    "segmenter_engines": ROOT / "engines" / "segmenter_engines",
    "segmenter_bench": ROOT / "bench",
    "segmenter_kernels": ROOT / "kernels" / "segmenter_kernels",
    "segmenter_trt": ROOT / "csrc" / "segmenter_trt",
}


def imports(node: ast.AST, inside_functions: bool) -> Iterator[str]:
    """Top-level package names imported by `node`, when it runs, or also when its functions do."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module.partition(".")[0]
        elif inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(child, inside_functions)


@pytest.mark.parametrize(
    ("package", "forbidden", "inside_functions"),
    [
        # commands may look further down the pipeline when they run, but importing the model costs only the model
        ("segmenter", {"segmenter_engines", "segmenter_bench", "segmenter_trt", "segmenter_kernels"}, False),
        ("segmenter_engines", {"segmenter_bench"}, True),
        ("segmenter_kernels", {"segmenter", "segmenter_engines", "segmenter_bench", "segmenter_trt"}, True),
        ("segmenter_trt", {"segmenter", "segmenter_engines", "segmenter_bench", "segmenter_kernels"}, True),
    ],
)
def test_layers(package: str, forbidden: set[str], inside_functions: bool) -> None:
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files, f"no Python file under {PACKAGES[package]}"
    for file in files:
        found = set(imports(ast.parse(file.read_text(encoding="utf-8")), inside_functions))
        assert not found & forbidden, f"{file.relative_to(ROOT)} imports {sorted(found & forbidden)}"


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("segmenter", "metrics.ConfusionMatrix ops.attention window.segment"),
        ("segmenter_engines", "build.build export.export verify.verify"),
    ],
)
def test_modules_of_a_package_are_its_attributes(package: str, names: str) -> None:
    asked = "; ".join(f"{package}.{name}" for name in names.split())
    succeed(sys.executable, "-c", f"import {package}; {asked}")
    refused = run(sys.executable, "-c", f"import {package}; {package}.metricks")
    assert f"AttributeError: module '{package}' has no attribute 'metricks'" in refused.stderr


def test_compiled_version_is_the_projects() -> None:
    segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")
    assert segmenter_trt.__version__ == __version__


@pytest.mark.slow
def test_a_wheel_works_on_a_bare_machine(tmp_path: Path) -> None:
    for name in ("setuptools", "pybind11", "pip"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    # quick to compile, and what is tested is what lies in the wheel
    environment = os.environ | {"CMAKE_ARGS": "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF"}
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.so", "runs", "demo", "shared")
    )
    wheel = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    result = run(sys.executable, *wheel, env=environment)
    assert result.returncode == 0, result.stderr
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    recipes = {f"segmenter/recipe_files/{path.name}" for path in (ROOT / "segmenter" / "recipe_files").glob("*.yaml")}
    assert recipes
    assert recipes <= names
    assert "segmenter_bench/results/guard-cpu.json" in names
    kept = {"__init__.py", "_native.pyi", "py.typed", "runtimes.py"}
    module = {name.partition("/")[2] for name in names if name.startswith("segmenter_trt/")}
    assert kept < module
    assert [name.partition(".")[0] for name in module - kept] == ["_native"]
    assert not any(name.endswith((".a", ".h", ".cc")) for name in names)

    # NumPy, and nothing else of this environment
    numpy = Path(pytest.importorskip("numpy").__file__).parent
    for package in (numpy, numpy.with_name("numpy.libs")):
        if package.is_dir():
            (tmp_path / "site" / package.name).symlink_to(package)
    program = """
import sys; sys.path.insert(0, sys.argv[1])
import segmenter_trt, numpy as np
assert segmenter_trt.__file__.startswith(sys.argv[1])
print(segmenter_trt.__version__, segmenter_trt.upsample_argmax(np.ones((1, 3, 2, 2), np.float32), (4, 4)).sum())
try: segmenter_trt.Engine("none.onnx")
except segmenter_trt.ArtifactError as error: print(error)
"""
    result = run(sys.executable, "-S", "-E", "-s", "-c", program, tmp_path / "site", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"{__version__} 0"
    assert "no such engine file" in result.stdout


@pytest.mark.parametrize("tools", [False, True])
def test_within_another_project_the_targets_have_the_names_of_the_installed_ones(tools: bool, tmp_path: Path) -> None:
    for program in ("cmake", "c++"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    (tmp_path / "CMakeLists.txt").write_text(f"""
cmake_minimum_required(VERSION 3.22)
project(other LANGUAGES CXX)
add_subdirectory({ROOT} segmenter_trt)
foreach(target segmenter_trt::segmenter_trt segmenter_trt::segmenter_trt_c segmenter_trt_cli)
  if(TARGET ${{target}})
    message(NOTICE "target ${{target}}")
  endif()
endforeach()
""")
    options = (f"-DSEGMENTER_TRT_JSON={json_headers()}", *(("-DSEGMENTER_TRT_TOOLS=ON",) if tools else ()))
    result = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", *options)
    assert result.returncode == 0, result.stderr
    found = [line.partition(" ")[2] for line in result.stderr.splitlines() if line.startswith("target ")]
    both = ["segmenter_trt::segmenter_trt", "segmenter_trt::segmenter_trt_c", "segmenter_trt_cli"]
    assert found == (both if tools else both[:1])


def test_the_installed_library_is_whole(sdk: Path) -> None:
    found = {str(path.relative_to(sdk)) for path in sdk.rglob("*") if path.is_file()}
    headers = {path.name for path in (ROOT / "csrc" / "include" / "segmenter_trt").iterdir()}
    wanted = {f"include/segmenter_trt/{name}" for name in headers} | {"bin/segmenter_trt_cli"}
    wanted |= {
        f"lib/{name}" for name in ("libsegmenter_trt_core.a", "libsegmenter_trt_c.so", "libsegmenter_trt_c.so.1")
    }
    wanted |= {
        f"lib/cmake/segmenter_trt/segmenter_trt-{name}.cmake" for name in ("config", "config-version", "targets")
    }
    assert sorted(wanted - found) == []


def test_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    result = run(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    archive = tmp_path / f"segmenter_trt-{__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE", "Makefile", "constraints.txt"}
    # folders that hold sources and nothing a build leaves behind
    sources = ("include", "src", "bindings", "cli", "cmake", "examples", "tests")
    for folder in ("segmenter", "engines", *(f"csrc/{name}" for name in sources)):
        wanted |= {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
    wanted |= {f"csrc/segmenter_trt/{name}" for name in ("__init__.py", "_native.pyi", "py.typed", "runtimes.py")}
    assert sorted(wanted - names) == []
    assert [name for name in names if name.endswith((".so", ".pyc"))] == []


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", False),
        ("darwin", "arm64", False),
        ("win32", "AMD64", True),
    ],
)
def test_extras_that_make_installs_ask_for_packages_that_exist(system: str, machine: str, wanted: bool) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    requirements = pytest.importorskip("packaging.requirements", reason="packaging is not installed")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (needed,) = map(requirements.Requirement, extras["tensorrt-rtx"])
    installed = needed.marker is None or needed.marker.evaluate({"sys_platform": system, "platform_machine": machine})
    assert installed == wanted


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ((), "no cmake found (looked for cmake); install one: pip install cmake"),
        (("cmake",), "no C++ compiler found (looked for c++, g++, clang++); install one: apt-get install g++"),
    ],
)
def test_a_build_without_its_tools_names_the_fix(tmp_path: Path, programs: tuple[str, ...], message: str) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in programs:
        (tools / name).write_text("#!/bin/sh\nexit 0\n")
        (tools / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "PATH")} | {"PATH": str(tools)}
    folders = ("--build-temp", tmp_path / "temp", "--build-lib", tmp_path / "lib")
    result = run(sys.executable, "setup.py", "build_ext", *folders, env=environment)
    assert result.returncode != 0
    assert message in result.stderr
