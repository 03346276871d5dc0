"""TensorRT 10, TensorRT 11 and TensorRT-RTX behind one face, for whoever builds plans or runs them.

What the three do alike (builder, network, ONNX parser, profiles, timing cache, progress monitor, inspector) is called
on the module that `tensorrt` returns; what differs is here. Where each fact is from:

- 10: headers 10.14. A network is strongly typed only when created with STRONGLY_TYPED; precision flags exist, and are
  refused on such a network.
- 11: headers and Python bindings 11.1. Every network is strongly typed, STRONGLY_TYPED is deprecated and ignored, and
  the precision flags are gone. Enum values moved: names alone are used.
- RTX: 1.7.1 itself. An API like 11's, with compute capabilities to build for, and a builder that needs no GPU.
"""

import functools
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from segmenter.errors import EngineError, Unavailable
from segmenter_engines.plugin_library import name_rtx_libraries


@dataclass(frozen=True)
class Product:
    """One of NVIDIA's two runtimes."""

    name: str  # as NVIDIA writes it
    module: str  # what Python imports
    extra: str  # of this project's, that installs it


ENGINES = {
    "tensorrt-rtx": Product("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx"),
    "tensorrt": Product("TensorRT", "tensorrt", "tensorrt"),
}


def product(engine: str) -> Product:
    """What is known of an engine by its name.

    Raises EngineError for any other name.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine {engine!r}: plans are built for {' and '.join(ENGINES)}")
    return ENGINES[engine]


def tensorrt(engine: str) -> Any:
    """The Python module of an engine, `tensorrt_rtx` or `tensorrt`.

    Raises Unavailable when it is not installed, its libraries do not load, or it is older than TensorRT 10.
    """
    chosen = product(engine)
    advice = f"pip install 'segmenter-trt[{chosen.extra}]'"
    try:
        if engine == "tensorrt-rtx":
            name_rtx_libraries()
        trt = import_module(chosen.module)
    except (ImportError, OSError) as error:
        raise Unavailable(f"engine {engine}: {' '.join(str(error).split())}; {advice}") from error
    if engine == "tensorrt" and int(trt.__version__.partition(".")[0]) < 10:
        raise Unavailable(f"engine {engine}: TensorRT {trt.__version__} is installed, wanted 10 or 11; {advice}")
    return trt


@functools.cache
def builder_log(engine: str) -> Any:
    """The process's one logger of an engine: TensorRT keeps the first it is given. `messages` holds what it said."""
    trt = tensorrt(engine)

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[tuple[Any, str]] = []  # severity and text, newest last

        def log(self, severity: Any, message: str) -> None:
            self.messages.append((severity, message))

        def clear(self) -> None:
            self.messages.clear()

        def errors(self) -> str:
            kinds = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            return "; ".join(" ".join(text.split()) for severity, text in self.messages if severity in kinds)

    return Log()


def strongly_typed_network(trt: Any, builder: Any) -> Any:
    """An empty network whose precision is what its tensors say."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # may go once it is ignored
    return builder.create_network(0 if flag is None else 1 << int(flag))
