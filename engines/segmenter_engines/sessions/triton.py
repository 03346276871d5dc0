"""Our Triton kernels: uint8 images in, labels out, all between them one CUDA graph a shape."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import segmenter_kernels
from segmenter import load_model
from segmenter.errors import EngineError, Unavailable
from segmenter_engines.sessions.cuda_graph import Graphs
from segmenter_engines.sessions.eight_bits import KINDS, quantize_blocks
from segmenter_engines.sessions.session import Session, Spec
from segmenter_kernels import tiles
from segmenter_kernels.checks import INTERPRETED
from segmenter_kernels.quantize import float8_supported

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16, "fp8": torch.float16}


class TritonSession(Session):
    """A checkpoint on the current CUDA device, in fp16 (the default), bf16, or fp16 with its blocks in int8 or fp8.

    Triton's interpreter (TRITON_INTERPRET=1) runs it on the CPU, slowly and without graphs, for tests.
    """

    engine = "triton"

    def __init__(self, path: Path, threads: int, precision: str | None = None) -> None:
        precision = precision or "fp16"
        if precision not in PRECISIONS:
            raise EngineError(f"precision {precision!r}: triton knows {', '.join(PRECISIONS)}; pass one of them")
        self._device, self._dtype = _device(precision), PRECISIONS[precision]
        model = load_model(path, ops=segmenter_kernels)
        model.fold_layer_scale()
        if precision in KINDS:
            quantize_blocks(model, KINDS[precision], self._device, self._dtype)
        self._model: Any = model.to(self._device, self._dtype).requires_grad_(False)
        super().__init__(replace(Spec.of_config(model.config), precision=precision), threads)
        self._run: Any = self._forward if INTERPRETED else Graphs(self._forward)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        batch = self._checked(images)
        with self._named():
            labels, finite = self._run(torch.from_numpy(np.ascontiguousarray(batch)))
            if not finite:
                raise EngineError(
                    f"{self.name}, {self.spec.model}: scores that are no numbers; try another precision, or its weights"
                    " are broken"
                )
        # the caller's own: the next call writes over this memory
        result: np.ndarray = labels.numpy().copy()
        return result[0] if images.ndim == 3 else result

    @torch.inference_mode()
    def _masks(self, x: np.ndarray) -> np.ndarray:
        masks: Tensor = self._model.masks(torch.from_numpy(x).to(self._device, self._dtype))
        return masks.float().contiguous().cpu().numpy()

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] on the device -> labels [B, H, W], and whether every score is a number."""
        encoder, (H, W) = self._model.encoder, images.shape[1:3]
        padded, P, preprocess = self._padded(H, W), self.spec.patch_size, self.spec.preprocess
        grid, proj = (padded[0] // P, padded[1] // P), encoder.patch_embed.proj
        assert proj.bias is not None
        x = segmenter_kernels.patch_embed(
            images, proj.weight, proj.bias, *encoder.embedding(grid), mean=preprocess.mean, std=preprocess.std
        )
        tokens = encoder.encode(x)[:, encoder.config.extra_tokens :]
        masks = self._model.decoder(tokens, grid)
        return self._label(masks, padded, (H, W)), masks.isfinite().all()

    def _label(self, masks: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Any:
        return segmenter_kernels.upsample_argmax(masks, padded, size)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "device": "interpreter" if INTERPRETED else torch.cuda.get_device_name(),
            "labels_by": "segmenter_kernels.upsample_argmax",
        }

    def close(self) -> None:
        super().close()
        # each holds the other, and memory of the device
        self._model = self._run = None


def _device(precision: str) -> torch.device:
    """Where kernels run. Raises Unavailable where they cannot."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unavailable("engine triton: no CUDA device here; use onnxruntime or openvino, or a machine with a GPU")
    device = torch.device("cuda")
    try:
        tiles.architecture_of(device)
        if precision == "fp8":
            float8_supported(precision, device)
    except ValueError as error:
        raise Unavailable(f"engine triton: {error}") from error
    return device
