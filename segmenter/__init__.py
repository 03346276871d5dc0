"""Segmenter (Strudel et al., ICCV 2021) in plain PyTorch: the network, its data, and how it is judged."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segmenter.lazy import submodule
from segmenter.version import __version__

if TYPE_CHECKING:
    from segmenter.checkpoint import load_model
    from segmenter.config import SegmenterConfig, variant
    from segmenter.model import Segmenter

__all__ = ["Segmenter", "SegmenterConfig", "__version__", "load_model", "variant"]

_HOMES = {
    "Segmenter": "segmenter.model",
    "SegmenterConfig": "segmenter.config",
    "load_model": "segmenter.checkpoint",
    "variant": "segmenter.config",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `segmenter --help` should not wait for it
    return getattr(import_module(_HOMES[name]), name) if name in _HOMES else submodule(__name__, name)
