"""The PyTorch engines: `eager`, the reference, and `compiled`, its best rival in PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmenter import load_model
from segmenter.ops import upsample_argmax
from segmenter_engines.sessions.session import Session, Spec


class EagerSession(Session):
    """The network as PyTorch runs it, in fp32; labels by the reference `upsample_argmax`."""

    engine = "eager"

    def __init__(self, path: Path, threads: int, precision: str | None = None) -> None:
        self._model = load_model(path)
        super().__init__(Spec.of_config(self._model.config), threads)
        self._network: Any = self._model.masks

    @torch.inference_mode()
    def _masks(self, x: np.ndarray) -> np.ndarray:
        torch.set_num_threads(self.threads)
        masks: torch.Tensor = self._network(torch.from_numpy(x))
        return masks.contiguous().numpy()

    def _labels(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return upsample_argmax(torch.from_numpy(self._masks(x)), self._padded(*size), size).numpy()

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"labels_by": "torch: bilinear interpolate, argmax"}


class CompiledSession(EagerSession):
    """The same under torch.compile, once a batch and image size."""

    engine = "compiled"

    def __init__(self, path: Path, threads: int, precision: str | None = None) -> None:
        super().__init__(path, threads, precision)
        self._network = torch.compile(self._model.masks, dynamic=False)

    def close(self) -> None:
        torch.compiler.reset()
