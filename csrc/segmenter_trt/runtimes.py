"""Where Python packages keep the libraries an engine needs: the runtimes', and our plugins beside this file."""

import os
from importlib.util import find_spec
from pathlib import Path

# runtime -> (package, folder of the libraries in it, variable that names others, which the library looks at itself)
_PACKAGES = {
    "openvino": ("openvino", "libs", "SEGMENTER_TRT_OPENVINO"),
    "tensorrt": ("tensorrt_libs", ".", "SEGMENTER_TRT_TENSORRT"),
    "tensorrt-rtx": ("tensorrt_rtx_libs", ".", "SEGMENTER_TRT_TENSORRT"),
}


def folder(runtime: str) -> Path | None:
    """The folder of a runtime's libraries, or None where its package is not installed; the package is not imported.

    None too where SEGMENTER_TRT_OPENVINO, or for both TensorRTs SEGMENTER_TRT_TENSORRT, names another.
    """
    package, libraries, variable = _PACKAGES.get(runtime, ("", "", ""))
    if os.environ.get(variable):
        return None
    spec = find_spec(package) if package else None
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(location, libraries)
        if path.is_dir():
            return path
    return None


def plugins() -> Path | None:
    """The library of TensorRT plugins that engines are given, or None where SEGMENTER_TRT_PLUGINS names another."""
    return None if os.environ.get("SEGMENTER_TRT_PLUGINS") else installed_plugins()


def installed_plugins() -> Path | None:
    """The library of TensorRT plugins beside this file, or None where this package was installed without it."""
    path = Path(__file__).with_name("libsegmenter_trt_plugin.so")
    return path if path.is_file() else None
