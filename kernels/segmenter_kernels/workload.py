"""One call of an op at a shape that Segmenter asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import segmenter_kernels
from segmenter_kernels import reference, tiles
from segmenter_kernels.tiles import Tile

Normal = Callable[..., Tensor]  # (*shape, scale=1.0)


@dataclass(frozen=True)
class Workload:
    """One call of an op. `draw` makes its positional arguments from a function that gives random tensors."""

    op: str
    batch: int  # images in it
    shape: str  # in words
    dtype: torch.dtype
    draw: Callable[[Normal], tuple[Any, ...]]
    flops: int
    traffic_bytes: int  # every input read and every output written once
    key: str  # of the op in the tile data
    case: str
    named: Mapping[str, Any] = field(default_factory=dict)
    plain_op: Callable[..., Any] | None = None  # where `segmenter_kernels.reference` has none
    only: Tile | None = None  # of ops without tile data, whose key and case say nothing

    def arguments(self, device: torch.device) -> tuple[Any, ...]:
        """Seeded arguments: normal, of mean 0 and the scale a network's have."""
        random = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=random, device=device) * scale).to(self.dtype)

        return self.draw(normal)

    def launch(self, *arguments: Any, tile: Tile | None = None) -> Any:
        return getattr(segmenter_kernels, self.op)(*arguments, **self.named, tile=tile)

    def plain(self, *arguments: Any) -> Any:
        """The op in PyTorch."""
        return (self.plain_op or getattr(reference, self.op))(*arguments)

    def tile_on(self, device: torch.device) -> Tile:
        """What a launch takes there."""
        return self.only or tiles.of_device(self.key, self.case, device)
