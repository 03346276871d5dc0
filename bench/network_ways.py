"""The ways to labels that PyTorch, Triton and NumPy alone allow, on the same random weights.

The engines of `segmenter_bench.rungs` are the same rungs as sessions on a checkpoint, which these packages do not
allow; what both compute is in `segmenter_bench.rivals`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from segmenter.config import SegmenterConfig
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter_bench.random_weights import random_model
from segmenter_bench.rivals import (
    Layout,
    channels_last_layout,
    classic_layout,
    labels_by_logits,
    official_labels,
    official_ops,
)


@dataclass(frozen=True)
class Way:
    """How labels are made: `call` of uint8 images [B, H, W, 3] on the host, and the class masks [B, K, h, w] behind."""

    name: str
    precision: str
    call: Callable[[np.ndarray], np.ndarray]
    masks: Callable[[np.ndarray], Tensor]
    does: str


class Graphed:
    """A function of images on the device as a CUDA graph, captured for the first images it is given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input: Tensor
        self._output: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        if self._graph is None or self._input.shape != images.shape:
            self._input = images.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # compiling kernels must not be captured
                    self._function(self._input)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = self._function(self._input)
        self._input.copy_(images)
        self._graph.replay()
        return self._output


def ways(config: SegmenterConfig, device: torch.device) -> list[Way]:
    """Every way this machine has, the rungs of the ladder in their order."""
    weights = random_model(config).state_dict()

    def network(ops: ModuleType | None, dtype: torch.dtype) -> Segmenter:
        model = Segmenter(config, ops).eval()
        model.load_state_dict(weights)
        return model.to(device, dtype).requires_grad_(False)

    if device.type == "cpu":
        explicit, plain = network(official_ops(), torch.float32), network(None, torch.float32)
        return [
            _pytorchs("official", explicit, classic_layout, "explicit attention, logits at image resolution, argmax"),
            _pytorchs("official-channels-last", explicit, channels_last_layout, "the same in another memory layout"),
            _pytorchs("eager", plain, channels_last_layout, "scaled_dot_product_attention, logits, argmax"),
        ]
    import segmenter_kernels

    explicit, plain = network(official_ops(), torch.float16), network(None, torch.float16)
    ours = network(segmenter_kernels, torch.float16)
    return [
        _pytorchs("gpu-explicit", explicit, channels_last_layout, "explicit attention, logits at image resolution"),
        _pytorchs("gpu-sdpa", plain, channels_last_layout, "scaled_dot_product_attention, logits, argmax"),
        _kernels("gpu-kernels", ours, segmenter_kernels, False, False, "our kernels, logits, argmax"),
        _kernels("gpu-kernels-labels", ours, segmenter_kernels, True, False, "our kernels, upsample_argmax"),
        _kernels("triton-fp16", ours, segmenter_kernels, True, True, "our kernels in one CUDA graph"),
    ]


def _pytorchs(name: str, model: Segmenter, layout: Layout, does: str) -> Way:
    weight = model.encoder.patch_embed.proj.weight

    def prepared(images: np.ndarray) -> Tensor:
        return normalize(images, model.config.preprocess).to(weight.device).to(weight.dtype)

    def call(images: np.ndarray) -> np.ndarray:
        return official_labels(model, prepared(images), layout).cpu().numpy()

    precision = "fp32" if weight.dtype == torch.float32 else "fp16"
    return Way(name, precision, call, lambda images: model.masks(prepared(images)), does)


def _kernels(name: str, model: Segmenter, kernels: ModuleType, fused_labels: bool, graphed: bool, does: str) -> Way:
    """uint8 pixels go to the device, as in the `triton` engine; sizes are whole patches."""
    encoder, spec, P = model.encoder, model.config.preprocess, model.config.encoder.patch_size
    proj, device = encoder.patch_embed.proj, encoder.patch_embed.proj.weight.device

    def masks(images: Tensor) -> Tensor:
        grid = (images.shape[1] // P, images.shape[2] // P)
        place = encoder.embedding(grid)
        x = kernels.patch_embed(images, proj.weight, proj.bias, *place, mean=spec.mean, std=spec.std)
        return model.decoder(encoder.encode(x)[:, encoder.config.extra_tokens :], grid)

    def labels(images: Tensor) -> Tensor:
        found, size = masks(images), (images.shape[1], images.shape[2])
        if fused_labels:
            fused: Tensor = kernels.upsample_argmax(found, size)
            return fused
        return labels_by_logits(found, size, size)

    run = Graphed(labels) if graphed else labels

    def call(images: np.ndarray) -> np.ndarray:
        return run(torch.from_numpy(images).to(device)).cpu().numpy()

    return Way(name, "fp16", call, lambda images: masks(torch.from_numpy(images).to(device)), does)
