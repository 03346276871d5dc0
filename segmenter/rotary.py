"""Rotary positions: what turns the queries and keys of a grid's patches."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE = 100.0  # DINOv3's

Rotation = tuple[Tensor, Tensor]  # cosines and sines [N, D / 2], as `segmenter.ops.rotate` takes them


class Rotates(Protocol):
    """A module with `segmenter.ops.rotate`; it is asked for where positions are rotary alone."""

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor: ...


def turned(ops: Rotates, qkv: Tensor, rotation: Rotation | None, heads: int) -> Tensor:
    """Queries, keys and values [B, N, 3C] as they meet in attention: as they are where positions are learnt."""
    return qkv if rotation is None else ops.rotate(qkv, *rotation, heads)


class Rotary(nn.Module):
    """Rotary positions as DINOv3 has them: a patch turns its queries and keys by where it lies in the image.

    Each axis runs from -1 to 1 between the image's edges, whatever the grid, so nothing is resized. The angles of a
    patch at (y, x) are 2 pi y / period and then 2 pi x / period, for D / 4 periods that grow from 1 by equal factors,
    the next of which would be `BASE`; `extra` tokens come first and turn by 0. The periods are kept with the weights:
    in Meta's files they are rounded to bfloat16.
    Source: Simeoni et al. 2025 (DINOv3), section 3.2, without the random scale of its training.
    """

    periods: Tensor

    def __init__(self, head_width: int, extra: int) -> None:
        super().__init__()
        self.extra = extra
        self.register_buffer("periods", BASE ** (torch.arange(head_width // 4) / (head_width // 4)))

    def forward(self, h: int, w: int, dtype: torch.dtype) -> Rotation:
        """Cosines and sines of a grid's angles, [E + h w, D / 2]: computed in float32 at least, rounded to `dtype`."""
        periods = self.periods.to(torch.promote_types(dtype, torch.float32))

        def along(side: int) -> Tensor:
            middles = torch.arange(side, dtype=periods.dtype, device=periods.device) + 0.5
            return 2 * math.pi * (middles / side * 2 - 1)[:, None] / periods  # [side, D / 4]

        y, x = along(h)[:, None].expand(-1, w, -1), along(w)[None].expand(h, -1, -1)
        angles = F.pad(torch.cat((y, x), dim=-1).flatten(0, 1), (0, 0, self.extra, 0))
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = self.periods
        super()._apply(fn, recurse)
        # a network in 16 bits has them as they were: rounded, they would turn every patch a little wrong
        self.periods = kept.to(self.periods.device)
        return self
