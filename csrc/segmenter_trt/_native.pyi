from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

__version__: str

_Simd = Literal["automatic", "baseline", "avx2"]

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    standard: str
    simd: str
    tensorrt: bool

def build_info() -> _BuildInfo: ...
def upsample_argmax(
    masks: NDArray[np.float32],
    size: tuple[int, int],
    crop: tuple[int, int] | None = None,
    threads: int = 0,
    *,
    simd: _Simd = "automatic",
) -> NDArray[np.uint8] | NDArray[np.int16]: ...
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
