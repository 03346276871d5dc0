"""The ways to labels that `segmenter_bench.network_step` times, each built on the same random weights.

The engines of `segmenter_bench.rungs` are the same rungs as sessions on a checkpoint; what both compute is in
`segmenter_bench.rivals`.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from segmenter.config import SegmenterConfig
from segmenter.cores import usable_cores
from segmenter.model import Segmenter
from segmenter.preprocess import affine, normalize
from segmenter_bench.random_weights import random_model
from segmenter_bench.rivals import (
    Layout,
    channels_last_layout,
    classic_layout,
    labels_by_logits,
    official_labels,
    official_ops,
)

COMPILED = "compiled-fp16"
EIGHT_BITS = ("int8", "fp8")
STREAMED = 8  # batches in one reading of a stream, from the first one's upload to the last one's labels
STREAMS = tuple(f"triton-{precision}-stream" for precision in ("fp16", *EIGHT_BITS))


@dataclass(frozen=True)
class Way:
    """How labels are made: `call` of uint8 images [B, H, W, 3] on the host, and the class masks [B, K, h, w] behind.

    stream: the same of one batch after another, where that is what is timed.
    """

    name: str
    precision: str
    call: Callable[[np.ndarray], np.ndarray]
    masks: Callable[[np.ndarray], Tensor]
    does: str
    stream: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]] | None = None


class Graphed:
    """A function of images on the device as a CUDA graph, captured for the first images it is given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function, self._graph = function, cast(Any, None)
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


@contextmanager
def ways(config: SegmenterConfig, device: torch.device, chosen: Sequence[str] = ()) -> Iterator[list[Way]]:
    """Every way this machine has, or the chosen ones, in the order of the ladder's rungs; all end with the block."""
    with ExitStack() as stack:
        # parameters made in inference mode are more than torch.compile takes
        with torch.inference_mode(False):
            found = _on_cpu(config) if device.type == "cpu" else _on_gpu(config, device, chosen, stack)
        yield [way for way in found if not chosen or way.name in chosen]


def network(config: SegmenterConfig, ops: ModuleType | None, dtype: torch.dtype, device: torch.device) -> Segmenter:
    """The network of the random weights that all ways share; to be run, not changed."""
    # drawing a hundred million numbers takes seconds, so it is done once
    with torch.device("meta"):
        model = Segmenter(config, ops).eval()
    model.load_state_dict(_weights(config), assign=True)
    return model.to(device, dtype).requires_grad_(False)


@lru_cache(maxsize=1)
def _weights(config: SegmenterConfig) -> dict[str, Tensor]:
    with torch.inference_mode(False):
        return random_model(config).state_dict()


def _on_cpu(config: SegmenterConfig) -> list[Way]:
    explicit, plain = (network(config, ops, torch.float32, torch.device("cpu")) for ops in (official_ops(), None))
    return [
        _pytorchs("official", explicit, classic_layout, "explicit attention, logits at image resolution, argmax"),
        _pytorchs("official-channels-last", explicit, channels_last_layout, "the same in another memory layout"),
        _pytorchs("eager", plain, channels_last_layout, "scaled_dot_product_attention, logits, argmax"),
    ]


def _on_gpu(config: SegmenterConfig, device: torch.device, chosen: Sequence[str], stack: ExitStack) -> list[Way]:
    import segmenter_kernels

    explicit, plain, ours = (
        network(config, ops, torch.float16, device) for ops in (official_ops(), None, segmenter_kernels)
    )
    found = [
        _pytorchs("gpu-explicit", explicit, channels_last_layout, "explicit attention, logits at image resolution"),
        _pytorchs("gpu-sdpa", plain, channels_last_layout, "scaled_dot_product_attention, logits, argmax"),
        _kernels("gpu-kernels", ours, segmenter_kernels, False, False, "our kernels, logits, argmax"),
        _kernels("gpu-kernels-labels", ours, segmenter_kernels, True, False, "our kernels, upsample_argmax"),
        _kernels("gpu-kernels-graph", ours, segmenter_kernels, True, True, "the same in one CUDA graph"),
        # streams where they are asked for: their times are not those of calls
        *(way for way in _engines(config, stack) if way.name not in STREAMS or way.name in chosen),
    ]
    # only where it is asked for: tuning takes minutes
    return [*found, _compiled(plain)] if COMPILED in chosen else found


def triton_lacks() -> str | None:
    """The module that is not installed and the `triton` engine needs; None where it has all."""
    try:
        import_module("segmenter.checkpoint")
        import_module("segmenter_engines.sessions.triton")
    except ModuleNotFoundError as error:
        return str(error.name)
    return None


def _engines(config: SegmenterConfig, stack: ExitStack) -> list[Way]:
    """The `triton` engine in every precision, then its streams; none where a package it needs is not installed."""
    if (lacking := triton_lacks()) is not None:
        print(f"no triton engine: {lacking} is not installed", file=sys.stderr, flush=True)
        return []
    from segmenter.checkpoint import save_model
    from segmenter_engines.sessions.triton import TritonSession

    checkpoint = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkpoint"
    save_model(network(config, None, torch.float32, torch.device("cpu")), checkpoint)

    # opened when it is first called, so that one that cannot be is a row of its own
    @cache
    def session(precision: str) -> TritonSession:
        with torch.inference_mode(False):
            opened = TritonSession(checkpoint, usable_cores(), precision)
        stack.callback(opened.close)
        return opened

    def way(precision: str) -> Way:
        def masks(images: np.ndarray) -> Tensor:
            return session(precision)._scores(torch.from_numpy(images).to(session(precision)._device))

        does = "the engine: one CUDA graph, pinned memory, every score checked to be a number"
        return Way(f"triton-{precision}", precision, lambda images: session(precision)(images), masks, does)

    def streamed(name: str, called: Way) -> Way:
        does = f"the engine's stream: copies beside the graph; the time of {STREAMED} batches in a row over {STREAMED}"
        return replace(called, name=name, does=does, stream=lambda batches: session(called.precision).stream(batches))

    calls = [way(precision) for precision in ("fp16", *EIGHT_BITS)]
    return [*calls, *(streamed(name, called) for name, called in zip(STREAMS, calls, strict=True))]


def _compiled(model: Segmenter) -> Way:
    """The rival that PyTorch makes of the whole way, pixels normalised on the device as in ours."""
    import torch._inductor.config as inductor  # takes a second

    weight = model.encoder.patch_embed.proj.weight
    # outside, for a copy from the host would keep it from being a CUDA graph
    scale, shift = (torch.from_numpy(x).to(weight.device)[:, None, None] for x in affine(model.config.preprocess))

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        masks = model.masks((images.permute(0, 3, 1, 2) * scale + shift).to(weight.dtype))
        size = (images.shape[1], images.shape[2])
        return labels_by_logits(masks, size, size), masks

    compiled: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.compile(both, mode="max-autotune", dynamic=False)
    tuned: set[torch.Size] = set()

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape in tuned:
            return compiled(images)
        tuned.add(images.shape)
        # in threads: candidates that processes of its own have compiled are compiled once more when they are timed
        with inductor.patch(compile_threads=1):
            return compiled(images)

    def call(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(False), torch.no_grad():
            return run(torch.from_numpy(images).to(weight.device))[0].cpu().numpy()

    def masks(images: np.ndarray) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            # its graphs write over what they gave
            return run(torch.from_numpy(images).to(weight.device))[1].clone()

    does = "torch.compile(mode='max-autotune') of all from uint8 pixels on the device to labels"
    return Way(COMPILED, "fp16", call, masks, does)


def _pytorchs(name: str, model: Segmenter, layout: Layout, does: str) -> Way:
    weight = model.encoder.patch_embed.proj.weight

    def prepared(images: np.ndarray) -> Tensor:
        return normalize(images, model.config.preprocess).to(weight.device).to(weight.dtype)

    def call(images: np.ndarray) -> np.ndarray:
        return official_labels(model, prepared(images), layout).cpu().numpy()

    precision = "fp32" if weight.dtype == torch.float32 else "fp16"
    return Way(name, precision, call, lambda images: model.masks(prepared(images)), does)


def _kernels(name: str, model: Segmenter, kernels: Any, fused_labels: bool, graphed: bool, does: str) -> Way:
    """uint8 pixels go to the device, as in the `triton` engine; sizes are whole patches."""
    encoder, spec, P = model.encoder, model.config.preprocess, model.config.encoder.patch_size
    proj, device = encoder.patch_embed.proj, encoder.patch_embed.proj.weight.device

    def masks(images: Tensor) -> Tensor:
        grid = (images.shape[1] // P, images.shape[2] // P)
        place = encoder.embedding(grid)
        x = kernels.patch_embed(images, proj.weight, proj.bias, *place, mean=spec.mean, std=spec.std)
        return model.masks_of(x, grid)

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
