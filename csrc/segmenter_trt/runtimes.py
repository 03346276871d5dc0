"""Where the Python packages of the runtimes keep their libraries."""

from importlib.util import find_spec
from pathlib import Path

# runtime -> (package, folder of the libraries in it)
_PACKAGES = {
    "openvino": ("openvino", "libs"),
    "tensorrt": ("tensorrt_libs", "."),
    "tensorrt-rtx": ("tensorrt_rtx_libs", "."),
}


def folder(runtime: str) -> Path | None:
    """The folder of a runtime's libraries, or None where its package is not installed; the package is not imported."""
    package, libraries = _PACKAGES.get(runtime, ("", ""))
    spec = find_spec(package) if package else None
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(location, libraries)
        if path.is_dir():
            return path
    return None
