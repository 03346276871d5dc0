import os
from typing import Any, Literal, Protocol, TypedDict, TypeVar, final, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

__version__: str

_Simd = Literal["automatic", "baseline", "avx2"]
_Backend = Literal["openvino", "tensorrt", "tensorrt-rtx"]
_Range = tuple[int, int, int]  # min, opt, max
_Labels = NDArray[np.uint8] | NDArray[np.int16]

class _DLPack(Protocol):
    def __dlpack__(self, *, stream: Any = ...) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, Any]: ...

class _CudaArray(Protocol):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

_Host = NDArray[Any] | Buffer | _DLPack
_Device = _DLPack | _CudaArray
_HostOut = TypeVar("_HostOut", bound=_Host)
_DeviceOut = TypeVar("_DeviceOut", bound=_Device)

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    standard: str
    simd: str
    tensorrt: bool

class _Preprocess(TypedDict):
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

class _Manifest(TypedDict):
    artifact: str
    kind: Literal["onnx", "plan"]
    engine: str
    precision: str
    sha256: str
    source: dict[str, str]
    model: str
    patch_size: int
    input: Literal["pixels", "normalized"]
    height: _Range
    width: _Range
    batch: _Range
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    preprocess: _Preprocess
    command: str
    versions: dict[str, str]
    machine: str
    plugins: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    details: dict[str, Any]
    verification: dict[str, Any] | None
    format: int

class _Description(TypedDict):
    engine: str
    runtime: str
    device: str
    precision: str
    floats: str
    model: str
    labels_by: str
    windows_by: str
    resized_by: str
    input: Literal["pixels", "normalized"]
    warning: str
    no_graphs: str | None
    threads: int
    height: _Range
    width: _Range
    batch: _Range

class Error(Exception): ...
class ManifestError(Error): ...
class ArtifactError(Error): ...
class Unavailable(Error): ...  # noqa: N818 - what a machine lacks, and nobody's error
class InputError(Error, ValueError): ...
class RunError(Error): ...

@final
class Engine:
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        backend: _Backend | None = None,
        precision: str | None = None,
        threads: int = 0,
        streams: int = 1,
        device: int = 0,
        runtime: str | os.PathLike[str] | None = None,
        plugins: str | os.PathLike[str] | None = None,
        require_verified: bool = False,
    ) -> None: ...
    @property
    def manifest(self) -> _Manifest: ...
    def describe(self) -> _Description: ...
    def close(self) -> None: ...
    def __enter__(self) -> Engine: ...
    def __exit__(self, *error: object) -> None: ...

@final
class Session:
    def __init__(
        self, engine: Engine, *, threads: int = 0, graphs: bool = True, shared_workspace: bool = False
    ) -> None: ...
    @property
    def engine(self) -> Engine: ...
    @overload
    def run(self, images: _Host, out: None = None) -> _Labels: ...
    @overload
    def run(self, images: _Host, out: _HostOut) -> _HostOut: ...
    @overload
    def run_resized(self, images: _Host, *, size: tuple[int, int] | None = None, out: None = None) -> _Labels: ...
    @overload
    def run_resized(self, images: _Host, *, size: tuple[int, int] | None = None, out: _HostOut) -> _HostOut: ...
    @overload
    def sliding_window(
        self, image: _Host, *, window: int, stride: int = 0, batch: int = 1, out: None = None
    ) -> _Labels: ...
    @overload
    def sliding_window(
        self, image: _Host, *, window: int, stride: int = 0, batch: int = 1, out: _HostOut
    ) -> _HostOut: ...
    def masks(self, images: _Host) -> NDArray[np.float32]: ...
    def logits(self, images: _Host) -> NDArray[np.float32]: ...
    def run_async(self, images: _Device, out: _DeviceOut, *, stream: Any = None) -> _DeviceOut: ...
    def describe(self) -> _Description: ...
    def close(self) -> None: ...
    def __enter__(self) -> Session: ...
    def __exit__(self, *error: object) -> None: ...

def build_info() -> _BuildInfo: ...
def core_to_core_ns(first: int, second: int) -> float: ...
def upsample_argmax(
    masks: NDArray[np.float32],
    size: tuple[int, int],
    crop: tuple[int, int] | None = None,
    threads: int = 0,
    *,
    simd: _Simd = "automatic",
) -> _Labels: ...
def normalize(
    images: NDArray[np.uint8],
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    out_height: int | None = None,
    out_width: int | None = None,
    threads: int = 0,
    *,
    simd: _Simd = "automatic",
) -> NDArray[np.float32]: ...
def resize(image: NDArray[np.uint8], height: int, width: int, threads: int = 0) -> NDArray[np.uint8]: ...
