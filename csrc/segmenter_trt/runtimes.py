"""Where Python packages keep the libraries an engine needs: the runtimes', and our plugins beside this file."""

import os
from importlib.util import find_spec
from pathlib import Path

# runtime -> (package, folder of the libraries in it)
_PACKAGES = {
    "openvino": ("openvino", "libs"),
    "tensorrt": ("tensorrt_libs", "."),
    "tensorrt-rtx": ("tensorrt_rtx_libs", "."),
}


def folder(runtime: str) -> Path | None:
    """The folder of a runtime's libraries, or None where its package is not installed; the package is not imported.

    None too where SEGMENTER_TRT_OPENVINO names OpenVINO's folder, which the library looks at itself.
    """
    if runtime == "openvino" and os.environ.get("SEGMENTER_TRT_OPENVINO"):
        return None
    package, libraries = _PACKAGES.get(runtime, ("", ""))
    spec = find_spec(package) if package else None
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(location, libraries)
        if path.is_dir():
            return path
    return None


def plugins() -> Path | None:
    """The library of TensorRT plugins, or None where this package was installed without it."""
    path = Path(__file__).with_name("libsegmenter_trt_plugin.so")
    return path if path.is_file() else None
