"""TensorRT-RTX plans: labels made inside the plan, device buffers held by PyTorch."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmenter.errors import EngineError, Unavailable
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions.session import Session, Spec
from segmenter_engines.tensorrt_api import builder_log, tensorrt

ENGINE = "tensorrt-rtx"
OLDEST = (8, 0)  # compute capability of the first GPUs plans are built for


class TensorRTSession(Session):
    """A plan on the first CUDA device, on a stream of its own. Needs an NVIDIA driver and an Ampere or later GPU."""

    engine = ENGINE

    def __init__(self, path: Path, threads: int, precision: str | None = None) -> None:
        manifest = read_manifest(path)
        super().__init__(Spec.of_manifest(manifest), threads)
        self._refuse(precision)
        _require_gpu()
        trt = tensorrt(ENGINE)
        self._trt = trt
        built, here = manifest.versions.get("tensorrt-rtx"), trt.__version__
        if built != here:
            raise EngineError(f"{path}: built with TensorRT-RTX {built}, this is {here}; build it again")
        log = builder_log(ENGINE)
        log.clear()
        self._runtime = trt.Runtime(log)
        self._engine: Any = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"{path}: {ENGINE} cannot load it: {log.errors() or 'no reason given'}")
        self._context: Any = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self._outputs = manifest.outputs

    def _labels(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if "labels" not in self._outputs:
            return super()._labels(x, size)
        return self._run(x, "labels").cpu().numpy()

    def _masks(self, x: np.ndarray) -> np.ndarray:
        if "masks" not in self._outputs:
            raise EngineError("this plan gives labels only; build it with --outputs labels masks to get logits too")
        return self._run(x, "masks").cpu().numpy()

    def _run(self, x: np.ndarray, wanted: str) -> torch.Tensor:
        kinds = {
            self._trt.DataType.FLOAT: torch.float32,
            self._trt.DataType.UINT8: torch.uint8,
            self._trt.DataType.INT32: torch.int32,
        }
        with torch.cuda.stream(self._stream):
            images = torch.from_numpy(x).pin_memory().cuda(non_blocking=True)
            if not self._context.set_input_shape("images", tuple(images.shape)):
                raise EngineError(f"images {tuple(images.shape)}: outside this plan's profile; build it for that batch")
            self._context.set_tensor_address("images", images.data_ptr())
            results = {}
            for name in self._outputs:
                shape = tuple(self._context.get_tensor_shape(name))
                results[name] = torch.empty(shape, dtype=kinds[self._engine.get_tensor_dtype(name)], device="cuda")
                self._context.set_tensor_address(name, results[name].data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise EngineError(f"{ENGINE}: execution failed: {builder_log(ENGINE).errors() or 'no reason given'}")
        self._stream.synchronize()
        return results[wanted]

    def close(self) -> None:
        self._context = self._engine = None

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "runtime": f"{ENGINE} {self._trt.__version__}",
            "device": torch.cuda.get_device_name(),
            "labels_by": "the plan" if "labels" in self._outputs else "segmenter_trt.upsample_argmax",
        }


def _require_gpu() -> None:
    driver = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(driver)
    except OSError as error:
        raise Unavailable(
            f"engine {ENGINE}: no NVIDIA driver here ({driver} not found); the plan is whole, run it on a machine with"
            " an Ampere or later GPU"
        ) from error
    if not torch.cuda.is_available():
        raise Unavailable(
            f"engine {ENGINE}: this PyTorch sees no CUDA device; install its CUDA build or check the driver"
        )
    if torch.cuda.get_device_capability() < OLDEST:
        raise Unavailable(
            f"engine {ENGINE}: {torch.cuda.get_device_name()} is older than Ampere; run the plan on a later GPU"
        )
