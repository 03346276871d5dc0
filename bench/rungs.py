"""Engines between the official way and ours that differ from the one before by one thing: rungs of the ablation ladder.

They are for measuring alone. Those of a GPU run there in fp16 from the first, so that no step is one of precision.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmenter.errors import Unavailable
from segmenter.preprocess import normalize
from segmenter_bench.engines import Engine
from segmenter_bench.rivals import LOGITS, Official, channels_last_layout
from segmenter_engines.sessions.session import Session
from segmenter_engines.sessions.torch import EagerSession


def open_rung(artifact: Path, engine: str, floats: str | None, threads: int) -> Engine:
    """The rung of a name. Raises Unavailable for those of a GPU where there is none."""
    if engine == "eager-fused-labels":
        return FusedLabels(artifact, threads)
    if engine in ("gpu-explicit", "gpu-sdpa"):
        return OnGpu(artifact, threads, explicit=engine == "gpu-explicit")
    # here, because Triton is not everywhere
    from segmenter_bench.launched import Launched

    return Launched(artifact, threads, fused_labels=engine == "gpu-kernels-labels")


class FusedLabels(EagerSession):
    """`eager` whose labels come from its class masks in one pass, as those of the exported engines do."""

    def _labels(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return Session._labels(self, x, size)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"labels_by": "segmenter_trt.upsample_argmax"}


class OnGpu(Official):
    """PyTorch's network on a GPU in fp16, its logits upsampled in the faster memory layout, then argmax."""

    def __init__(self, path: Path, threads: int, explicit: bool) -> None:
        if not torch.cuda.is_available():
            raise Unavailable("no CUDA device here; this rung of the ladder runs on a GPU alone")
        super().__init__(path, threads, channels_last_layout, explicit)
        self.model.half().cuda()
        self._attention = "explicit attention" if explicit else "scaled_dot_product_attention"

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        x = normalize(images, self.model.config.preprocess).cuda().half()
        return self._labels(x).cpu().numpy()

    @torch.inference_mode()
    def masks(self, x: np.ndarray) -> np.ndarray:
        return self.model.masks(torch.from_numpy(x).cuda().half()).float().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        does = f"{self._attention}, {LOGITS}, argmax"
        return super().describe() | {"precision": "fp16", "device": torch.cuda.get_device_name(), "does": does}
