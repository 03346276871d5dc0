"""Transformer blocks with linear layers in 8 bits, on our Triton kernels, and nothing to calibrate.

Weights get a scale an output channel, once. The kernel of a LayerNorm writes its rows in 8 bits, each with a scale of
its own, so that qkv and fc1 cost no pass more than in 16. The inputs of proj and fc2 come from attention and from GELU,
whose kernels never hold a whole row to find its scale.

In float8 fc2 is in 8 bits as well, for float8 keeps its precision far below what a scale allows: one that holds for
every image will do, and `largest_hidden` knows one. GELU's kernel then writes 8 bits itself. int8 would lose some three
of its bits to that scale, and a pass of its own to find another takes longer than the product gains (H100, Seg-B at 512
x 512, batch 8: about 50 us, where the product takes 39.6 in int8 and 66 in fp16): there fc2 stays in 16. So do proj,
whose product is no quicker in 8 (H200: 18.5 us in float8 with its residual, cuBLAS's in fp16 16.9), and all else.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

import segmenter_kernels
from segmenter.decoder import MaskDecoder
from segmenter.model import Segmenter
from segmenter.rotary import Rotation, turned
from segmenter.vit import Block
from segmenter_kernels.quantize import LARGEST

KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class EightBitLinear:
    """A linear layer, its weights in `kind` on `device`.

    [..., I] in `kind` with its scales, one a row or one in all, to [..., O] in `dtype`, or in `kind` with `out_scale`.
    """

    def __init__(
        self, linear: nn.Linear, kind: torch.dtype, device: torch.device, dtype: torch.dtype, ops: Any
    ) -> None:
        # a row of the weights is an output channel, as a row of activations is a token
        self.weight, self.scale = ops.quantize(linear.weight.detach().to(device), dtype=kind)
        self.bias = linear.bias.detach().to(device, dtype)
        self.multiply, self.dtype = ops.linear_int8 if kind == torch.int8 else ops.linear_fp8, dtype

    def __call__(
        self,
        q: Tensor,
        scale: Tensor,
        gelu: bool = False,
        residual: Tensor | None = None,
        out_scale: Tensor | None = None,
    ) -> Tensor:
        return self.multiply(
            *(q, self.weight, scale, self.scale, self.bias),
            gelu=gelu,
            residual=residual,
            out_scale=out_scale,
            dtype=self.dtype,
        )


class EightBitBlock(nn.Module):
    """A `segmenter.vit.Block` for inference. [B, N, C] -> [B, N, C].

    ops: our kernels, or what has functions of their names and meaning.
    """

    def __init__(
        self,
        block: Block,
        kind: torch.dtype,
        device: torch.device,
        dtype: torch.dtype,
        ops: Any = segmenter_kernels,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads, self.kind = block.norm1, block.norm2, block.attn.heads, kind
        self.proj, self.ops = block.attn.proj, ops

        def quantised(layer: nn.Linear) -> EightBitLinear:
            return EightBitLinear(layer, kind, device, dtype, ops)

        self.qkv, self.fc1 = quantised(block.attn.qkv), quantised(block.mlp.fc1)
        self.hidden_scale: Tensor | None = None
        self.fc2: nn.Linear | EightBitLinear
        if kind == torch.float8_e4m3fn:
            scale = torch.tensor(largest_hidden(block.norm2, block.mlp.fc1) / LARGEST[kind], device=device)
            self.hidden_scale = torch.where(scale == 0.0, 1.0, scale)
            self.fc2 = quantised(block.mlp.fc2)
        else:
            self.fc2 = block.mlp.fc2

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        _, q, scale = self._normed(self.norm1, x)
        qkv = turned(self.ops, self.qkv(q, scale), rotation, self.heads)
        branch = self.proj(self.ops.attention(qkv, self.heads))
        x, q, scale = self._normed(self.norm2, x, branch)
        hidden = self.fc1(q, scale, gelu=True, out_scale=self.hidden_scale)
        if self.hidden_scale is None:
            return self.ops.linear_residual(hidden, self.fc2.weight, self.fc2.bias, x)
        return self.fc2(hidden, self.hidden_scale, residual=x)

    def _normed(self, norm: nn.LayerNorm, x: Tensor, r: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.ops.layernorm_quantize(x, norm.weight, norm.bias, norm.eps, r=r, dtype=self.kind)


@torch.no_grad()
def largest_hidden(norm: nn.LayerNorm, linear: nn.Linear) -> float:
    """What |GELU(linear(norm(x)))| never passes, whatever x is.

    Rows that a LayerNorm has centred and divided have a mean of 0 and a length of sqrt(C) at most. So an output
    channel, a product with weights of which a mean may be taken off, is at most sqrt(C) times their length
    (Cauchy-Schwarz), beside what the norm's own bias and the layer's add; and |GELU(y)| <= |y|.
    """
    weight, bias = linear.weight.double(), linear.bias.double()
    scaled = weight * norm.weight.double()
    lengths = (scaled - scaled.mean(dim=1, keepdim=True)).norm(dim=1)
    return float((math.sqrt(weight.shape[1]) * lengths + (weight @ norm.bias.double() + bias).abs()).max())


def quantize_blocks(
    model: Segmenter, kind: torch.dtype, device: torch.device, dtype: torch.dtype, ops: Any = segmenter_kernels
) -> None:
    """Put 8-bit blocks in place of a network's own, LayerScale folded before; `dtype` is that of the rest."""
    parts: list[nn.Module] = [model.encoder]
    if isinstance(model.decoder, MaskDecoder):
        parts.append(model.decoder)
    for part in parts:
        blocks = [cast(Block, block) for block in cast(nn.ModuleList, part.blocks)]
        part.blocks = nn.ModuleList(EightBitBlock(block, kind, device, dtype, ops) for block in blocks)
