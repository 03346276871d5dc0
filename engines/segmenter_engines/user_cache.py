"""Where what can be made again is kept between processes."""

import os
import sys
from pathlib import Path


def user_cache(kind: str) -> Path | None:
    """The folder `segmenter/KIND` in the system's place for caches; None for a user who has no home."""
    try:
        return _base() / "segmenter" / kind
    except RuntimeError:  # of pathlib's, where neither HOME nor the system's list of users names one
        return None


def _base() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
