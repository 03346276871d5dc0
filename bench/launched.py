"""The `triton` engine without its CUDA graph: our kernels launched one by one, for the ablation ladder."""

from pathlib import Path
from typing import Any

from torch import Tensor

from segmenter_bench.rivals import LOGITS, labels_by_logits
from segmenter_engines.sessions.triton import TritonSession


class Launched(TritonSession):
    """Our kernels in fp16. fused_labels: by `segmenter_kernels.upsample_argmax`, else by full-resolution logits."""

    def __init__(self, path: Path, threads: int, fused_labels: bool) -> None:
        super().__init__(path, threads, "fp16")
        self._fused_labels, self._run = fused_labels, self._launch

    def _launch(self, images: Tensor) -> tuple[Tensor, Tensor]:
        labels, finite = self._forward(images.to(self._device))
        return labels.cpu(), finite.cpu()

    def _label(self, masks: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Any:
        if self._fused_labels:
            return super()._label(masks, padded, size)
        return labels_by_logits(masks, padded, size)

    def describe(self) -> dict[str, Any]:
        labels = "upsample_argmax" if self._fused_labels else f"{LOGITS}, argmax"
        return super().describe() | {"does": f"our kernels launched one by one, {labels}"}
