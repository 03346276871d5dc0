"""The GPU, through the first library here that can drive it: PyTorch, PyCUDA or cuda-python."""

import ctypes
import sys
from collections.abc import Sequence
from importlib import import_module

from segmenter.errors import EngineError, Unavailable
from segmenter_engines.sessions.device.interface import LEGACY, Device, Memory, Stream

__all__ = ["LEGACY", "LIBRARIES", "Device", "Memory", "Stream", "open_device", "require_driver"]

# in the order they are tried: module here, class, what it imports, extra of this project
LIBRARIES = {
    "torch": ("segmenter_engines.sessions.device.torch", "TorchDevice"),
    "pycuda": ("segmenter_engines.sessions.device.pycuda", "PyCudaDevice"),
    "cuda-python": ("segmenter_engines.sessions.device.cuda_python", "CudaPythonDevice"),
}


def require_driver(engine: str) -> None:
    """See that there is an NVIDIA driver, before anything is imported that would miss it less politely.

    Raises Unavailable where there is none.
    """
    driver = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(driver)
    except OSError as error:
        raise Unavailable(
            f"engine {engine}: no NVIDIA driver here ({driver} not found); the plan is whole, run it on a machine with"
            " one of the GPUs it was built for"
        ) from error


def open_device(engine: str, libraries: Sequence[str] = tuple(LIBRARIES)) -> Device:
    """The calling thread's GPU, through the first of `libraries` that can.

    Raises Unavailable, with what each said, where none can, and EngineError for a name that is none of `LIBRARIES`.
    """
    said = []
    for name in libraries:
        if name not in LIBRARIES:
            raise EngineError(f"library {name!r} drives no GPU here; choose of {', '.join(LIBRARIES)}")
        module, kind = LIBRARIES[name]
        try:
            device: Device = getattr(import_module(module), kind)()
            return device
        except ModuleNotFoundError:
            said.append(f"{name} is not installed")
        except (Unavailable, ImportError) as error:
            said.append(str(error))
    raise Unavailable(
        f"engine {engine}: no CUDA device can be used: {'; '.join(said)}; install PyTorch's CUDA build, or"
        " pip install 'segmenter-trt[cuda-python]'"
    )
