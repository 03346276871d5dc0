"""The PyTorch engines: `eager`, the reference, and `compiled`, its best rival in PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmenter import load_model
from segmenter_engines.sessions.session import Session
from segmenter_engines.sessions.spec import Spec


class EagerSession(Session):
    """The network as PyTorch runs it, in fp32; labels by the reference `upsample_argmax`."""

    engine = "eager"

    def __init__(self, path: Path, threads: int, precision: str | None = None) -> None:
        self._model: Any = load_model(path)
        super().__init__(Spec.of_config(self._model.config), threads)
        self._refuse(precision)
        self._network: Any = self._model.masks
        self._labelled: Any = self._label

    @torch.inference_mode()
    def _masks(self, x: np.ndarray) -> np.ndarray:
        torch.set_num_threads(self.threads)
        masks: Tensor = self._network(torch.from_numpy(x))
        return masks.contiguous().numpy()

    @torch.inference_mode()
    def _labels(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        torch.set_num_threads(self.threads)
        labels, finite = self._labelled(torch.from_numpy(x))
        self._require_numbers(bool(finite))
        return labels.numpy()

    def _label(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`Segmenter.labels`, in the layout the decoder leaves its masks in, and whether every score is a number."""
        masks, size = self._model.masks(x), (x.shape[-2], x.shape[-1])
        return self._model.ops.upsample_argmax(masks, self._padded(*size), size), masks.isfinite().all()

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"labels_by": "torch: bilinear interpolate, argmax"}

    def close(self) -> None:
        super().close()
        # the last two hold the network too, and the session itself
        self._model = self._network = self._labelled = None


class CompiledSession(EagerSession):
    """The same under torch.compile, labels included, once a batch and image size."""

    engine = "compiled"

    def __init__(self, path: Path, threads: int, precision: str | None = None) -> None:
        super().__init__(path, threads, precision)
        self._network = torch.compile(self._model.masks, dynamic=False)
        self._labelled = torch.compile(self._label, dynamic=False)

    def close(self) -> None:
        super().close()
        torch.compiler.reset()
