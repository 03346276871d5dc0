"""Segmenter engines: export, quantise, build, verify, and one `Session` for every runtime."""

from types import ModuleType

from segmenter.lazy import submodule
from segmenter_engines.sessions import ENGINES, Session, open_session

__all__ = ["ENGINES", "Session", "open_session"]


def __getattr__(name: str) -> ModuleType:
    return submodule(__name__, name)
