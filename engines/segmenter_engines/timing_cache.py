"""Timings of TensorRT's kernels, kept between builds: a file each runtime, version, GPU and builder level.

TensorRT-RTX has none: it times nothing when it builds, and since 1.2 its calls do nothing (they warn that themselves).
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segmenter.errors import EngineError
from segmenter.files import atomic_path
from segmenter_engines.user_cache import user_cache

NONE = "none"


def cache_folder(option: str | None, engine: str) -> Path | None:
    """Where the caches of an engine lie; None for none. option: a folder, `none`, or None for the user's cache folder
    (none, for a user without one).

    Raises EngineError for a folder that an engine without such a cache is given, or that is a file.
    """
    if engine != "tensorrt":
        if option not in (None, NONE):
            raise EngineError(
                f"--timing-cache {option}: engine {engine} times nothing when it builds and keeps none; leave it out"
            )
        return None
    if option == NONE:
        return None
    # the path's own way raises for a user that the system does not know
    folder = Path(os.path.expanduser(option)) if option else user_cache("timing")  # noqa: PTH111
    if folder is not None and folder.exists() and not folder.is_dir():
        raise EngineError(f"--timing-cache {folder}: is a file; name a folder, or `none`")
    return folder


def cache_file(folder: Path, engine: str, version: str, gpu: str, level: int) -> Path:
    """The file of one (runtime, version, GPU, level); gpu: its name, or "" for a builder without one."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") if gpu else "cpu"
    # two GPUs may differ in no letter that a file name takes
    mark = hashlib.sha256(gpu.encode()).hexdigest()[:6]
    return folder / f"{engine}-{version}-{name}-{mark}-level{level}.cache"


def attach(config: Any, file: Path, log: Any, say: Callable[[str], None]) -> None:
    """Give a builder config the timings of `file`, or an empty cache where there are none; a broken file is told."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        say(f"timing cache {file}: {error.strerror}; building without what it holds")
        data = b""
    if data:
        before = log.errors()
        # a cache that cannot be read comes back as None, or empty after an error in the log
        cache = config.create_timing_cache(data)
        if cache is not None and log.errors() == before and config.set_timing_cache(cache, False):
            return
        reason = log.errors().removeprefix(before).strip("; ")
        say(f"timing cache {file}: not usable here{f' ({reason})' if reason else ''}; beginning it anew")
    config.set_timing_cache(config.create_timing_cache(b""), False)


def keep(config: Any, file: Path, say: Callable[[str], None]) -> None:
    """Write what a build timed; a folder that takes no file costs the timings and not the plan."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        with atomic_path(file) as temporary:
            temporary.write_bytes(memoryview(cache.serialize()))
    except OSError as error:
        say(f"timing cache {file}: {error.strerror}; the timings of this build are not kept")
