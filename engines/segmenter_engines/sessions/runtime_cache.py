"""Kernels that TensorRT-RTX compiles when a context is made, kept between processes: a file each plan and GPU.

It refuses by itself what another version, driver or GPU compiled, and then compiles anew.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

from segmenter.files import atomic_path
from segmenter_engines.user_cache import user_cache


def cache_file(plan_sha256: str, gpu: str) -> Path | None:
    """The file of a plan's kernels for a GPU, in the user's cache folder; None for a user who has no folder."""
    mark = hashlib.sha256(f"{plan_sha256} {gpu}".encode()).hexdigest()[:32]
    folder = user_cache("kernels")
    return None if folder is None else folder / f"{mark}.cache"


def load(cache: Any, file: Path | None) -> bytes:
    """Give a runtime cache what `file` holds; returns that, empty where there is none or it cannot be used."""
    if file is None:
        return b""
    try:
        kept = file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        _tell(file, error, "compiling what it holds")
        return b""
    return kept if cache.deserialize(kept) else b""


def keep(cache: Any, file: Path | None, loaded: bytes) -> None:
    """Write what a runtime cache holds where that is not what was `loaded`; a failure costs time and no labels."""
    if file is None:
        return
    memory = cache.serialize()
    held = b"" if memory is None else bytes(memoryview(memory))
    if held in (b"", loaded):
        return
    try:
        with atomic_path(file) as temporary:
            temporary.write_bytes(held)
    except OSError as error:
        _tell(file, error, "the next process compiles these kernels again")


def _tell(file: Path, error: OSError, consequence: str) -> None:
    warnings.warn(f"kernels of a plan, {file}: {error.strerror}; {consequence}", RuntimeWarning, stacklevel=2)
