"""Names for the profiler: every stage of a network as a range around the ops and layers that are its."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.profiler import record_function

from segmenter.model import Segmenter
from segmenter.vit import Attention

PREFIX = "stage: "
OF_OP = {
    "rotate": "attention",
    "attention": "attention",
    "patch_embed": "patch embedding",
    "layernorm": "norms and residuals",
    "add_layernorm": "norms and residuals",
    "linear_gelu": "MLP",
    "linear_residual": "MLP",
    "mask_scores": "mask scores",
    "upsample_argmax": "upsample + argmax",
}


class Ranges:
    """Names stages for the profiler; what the decoder calls is the decoder's, but for the mask scores."""

    def __init__(self) -> None:
        self.inside_decoder = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.inside_decoder and name != "mask scores":
            yield  # the decoder's own range is open
            return
        with record_function(PREFIX + name):
            yield

    def ops(self, module: ModuleType) -> ModuleType:
        """A module of ops whose calls are named."""
        named = ModuleType("named_ops")
        for name, stage in OF_OP.items():
            setattr(named, name, self._named(getattr(module, name), stage))
        return named

    def watch(self, model: Segmenter) -> None:
        """Name what the network does besides ops."""
        decoder = list(model.decoder.modules())
        for module in model.modules():
            if module in decoder:
                continue
            if isinstance(module, Attention):
                self._watch(module.qkv, "projections")
                self._watch(module.proj, "projections")
        self._watch_decoder(model.decoder)

    def _watch(self, module: nn.Module, stage: str) -> None:
        module.forward = self._named(module.forward, stage)

    def _watch_decoder(self, decoder: nn.Module) -> None:
        forward = decoder.forward

        def decode(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
            with record_function(PREFIX + "decoder"):
                self.inside_decoder = True
                try:
                    masks: Tensor = forward(tokens, grid)
                    return masks
                finally:
                    self.inside_decoder = False

        decoder.forward = decode

    def _named(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self.stage(stage):
                return function(*arguments, **named)

        return call
