"""Names for the profiler: every stage of a network as a range around the ops and layers that are its."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.profiler import record_function

from segmenter.model import Segmenter
from segmenter.vit import Attention, Block

PREFIX = "stage: "
OF_OP = {
    "rotate": "attention",
    "attention": "attention",
    "patch_embed": "patch embedding",
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
                module.qkv.forward = self._named(module.qkv.forward, "projections")  # type: ignore[method-assign]
                module.proj.forward = self._named(module.proj.forward, "projections")  # type: ignore[method-assign]
            if isinstance(module, Block):
                module.norm1.forward = self._named(module.norm1.forward, "norms and residuals")  # type: ignore[method-assign]
        norm: nn.Module = model.encoder.norm
        norm.forward = self._named(norm.forward, "norms and residuals")  # type: ignore[method-assign]
        forward = model.decoder.forward

        def decode(*arguments: Any) -> Tensor:
            with record_function(PREFIX + "decoder"):
                self.inside_decoder = True
                try:
                    return forward(*arguments)
                finally:
                    self.inside_decoder = False

        model.decoder.forward = decode  # type: ignore[method-assign]

    def _named(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self.stage(stage):
                return function(*arguments, **named)

        return call
