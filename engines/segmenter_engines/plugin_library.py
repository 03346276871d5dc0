"""Libraries of TensorRT plugins: loaded into a runtime's registry once a process, for builds and for sessions."""

import atexit
import ctypes
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from segmenter.errors import EngineError

_loaded: set[tuple[str, Path]] = set()  # a registry refuses what it has


def load_plugins(trt: Any, engine: str, library: Path | None, needed: Sequence[str], log: Any) -> None:
    """Load a plugin library and see that every op is there a graph or plan needs.

    trt: the engine's module. needed: op names, such as SegmenterAttention. A library runs its code here: load those
    alone that you trust.
    Raises EngineError, naming them, for a library that cannot be loaded, ops that none brings, or a TensorRT whose
    parser finds none of them.
    """
    if needed and engine == "tensorrt" and _before_10_10(trt.__version__):
        raise EngineError(
            f"engine tensorrt: ops {', '.join(needed)} are needed, and the ONNX parser of TensorRT {trt.__version__}"
            " finds no plugins by the domain of a node, which 10.10 is the first to do; install that or a later one, or"
            " export with --lowering native"
        )
    registry = trt.get_plugin_registry()
    if library is not None and not library.is_file():
        raise EngineError(f"plugin library {library}: no such file; pass the path of the built library")
    if library is not None and (engine, library.resolve()) not in _loaded:
        before = len(log.messages)
        # a library without setLoggerFinder gives None and no word
        if registry.load_library(str(library.resolve())) is None:
            raise EngineError(
                f"plugin library {library}: {engine} cannot load it: {_reason(library.resolve(), log, before)}; build"
                f" it against the headers of {engine} {trt.__version__}"
            )
        _loaded.add((engine, library.resolve()))
    known = {creator.name for creator in registry.all_creators}
    missing = sorted(set(needed) - known)
    if missing:
        told = f"which {library} does not bring" if library else "which come from a plugin library"
        raise EngineError(
            f"{engine}: ops {', '.join(missing)} are needed, {told}; pass --plugin-library PATH, or export with"
            " --lowering native"
        )


def _before_10_10(version: str) -> bool:
    # from NVIDIA's notes of 10.10: its importer of plugins "now also reads its namespace from a Node's domain field"
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) < (10, 10)


def _reason(library: Path, log: Any, before: int) -> str:
    """What the log said since, and where it said nothing, what the system's loader says."""
    # a GPU that is not there is told at every load, and is no reason
    said = [text for _, text in log.messages[before:] if "cudaError" not in text and "CUDA" not in text]
    if said:
        return " ".join(said[-1].split())
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return "it exports no getCreators and setLoggerFinder"


def name_rtx_libraries() -> None:
    """Load TensorRT-RTX's libraries so that its ONNX parser finds them by the name it looks for.

    Where it meets a plugin the parser of 1.7.1 opens `libtensorrt_rtx.so`, and ends the process when there is none; the
    package on PyPI brings `libtensorrt_rtx.so.1` alone. It looks beside the library it was loaded with: so that is
    loaded from a folder of links with both names. Does nothing once `tensorrt_rtx` is imported: too late.
    """
    spec = None if "tensorrt_rtx" in sys.modules or sys.platform != "linux" else find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        return
    home = Path(next(iter(spec.submodule_search_locations)))
    libraries = sorted(home.glob("lib*.so.*"), reverse=True)  # the runtime before the parser that needs it
    if any((home / f"{library.name.partition('.so')[0]}.so").exists() for library in libraries):
        return
    links = tempfile.TemporaryDirectory(prefix="segmenter-rtx-")
    atexit.register(links.cleanup)
    for library in libraries:
        for name in (library.name, f"{library.name.partition('.so')[0]}.so"):
            (Path(links.name) / name).symlink_to(library)
    for library in libraries:
        ctypes.CDLL(str(Path(links.name) / library.name))
