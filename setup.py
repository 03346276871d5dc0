"""Builds the extension segmenter_trt._native with CMake; everything else about the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures, builds and installs the extension, in a build folder of this interpreter's own."""

    def build_extension(self, ext: Extension) -> None:
        cmake = require("cmake", ["cmake"], "pip install cmake")
        compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
        require("C++ compiler", compilers, "apt-get install g++ (or your system's package of it), or set CXX")
        import pybind11  # after the tools, whose absence is the likelier and plainer fault

        build = Path(self.build_temp).resolve() / "cmake"
        # a cache names the tools of the environment that wrote it, which may be gone: pip's build environments are
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        shutil.rmtree(build / "CMakeFiles", ignore_errors=True)
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build)),
            *("-G", "Ninja" if shutil.which("ninja") else "Unix Makefiles"),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            "-DSEGMENTER_TRT_PYTHON=ON",
            "-DSEGMENTER_TRT_TOOLS=OFF",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *json_headers(),
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        folder = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        jobs = str(self.parallel or os.cpu_count() or 1)
        install = [cmake, "--install", str(build), "--component", "python", "--prefix", str(folder)]
        for step in (configure, [cmake, "--build", str(build), "--parallel", jobs], install):
            if subprocess.run(step, check=False).returncode:
                raise CompileError(f"segmenter_trt: `{' '.join(step)}` failed; its own message is above")
        if self.editable_mode:  # setuptools puts the extension alone among the sources; the others belong beside it
            place = ROOT / "csrc" / "segmenter_trt"
            for stale in place.glob("libsegmenter_trt_*.so"):
                stale.unlink()
            for library in folder.glob("libsegmenter_trt_*.so"):
                shutil.copy(library, place)


def json_headers() -> list[str]:
    """Where the wheel nlohmann-json keeps its headers, for CMake; without it CMake looks for a system's."""
    # found, not imported: the wheel's own module imports another package
    wheel = find_spec("nlohmann_json")
    folders = (wheel.submodule_search_locations or []) if wheel else []
    return [f"-DSEGMENTER_TRT_JSON={Path(folder) / 'include'}" for folder in folders]


def require(what: str, names: list[str], fix: str) -> str:
    """Path of the first program found. Raises CompileError naming the fix."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise CompileError(f"segmenter_trt: no {what} found (looked for {', '.join(names)}); install one: {fix}")


setup(ext_modules=[Extension("segmenter_trt._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
