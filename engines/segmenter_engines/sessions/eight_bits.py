"""Transformer blocks with their linear layers in 8 bits, on our Triton kernels.

Weights get a scale an output channel, once; activations one a token, as they come, so nothing is calibrated. Between
the layers everything stays in 16 bits.
"""

from typing import cast

import torch
from torch import Tensor, nn

import segmenter_kernels
from segmenter.decoder import MaskDecoder
from segmenter.model import Segmenter
from segmenter.rotary import Rotation, turned
from segmenter.vit import Block

KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_LINEAR = {torch.int8: segmenter_kernels.linear_int8, torch.float8_e4m3fn: segmenter_kernels.linear_fp8}


class EightBitLinear:
    """A linear layer, its weights in `kind` on `device`. [..., I] -> [..., O] of the same 16-bit type."""

    def __init__(self, linear: nn.Linear, kind: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
        # a row of the weights is an output channel, as a row of activations is a token
        self.weight, self.scale = segmenter_kernels.quantize(linear.weight.detach().to(device), dtype=kind)
        self.bias = linear.bias.detach().to(device, dtype)
        self.kind = kind

    def __call__(self, x: Tensor, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        q, scale = segmenter_kernels.quantize(x, dtype=self.kind)
        multiply = _LINEAR[self.kind]
        return multiply(q, self.weight, scale, self.scale, self.bias, gelu=gelu, residual=residual, dtype=x.dtype)


class EightBitBlock(nn.Module):
    """A `segmenter.vit.Block` for inference. [B, N, C] -> [B, N, C]."""

    def __init__(self, block: Block, kind: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads = block.norm1, block.norm2, block.attn.heads
        layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        self.qkv, self.proj, self.fc1, self.fc2 = (EightBitLinear(layer, kind, device, dtype) for layer in layers)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        qkv = turned(segmenter_kernels, self.qkv(self.norm1(x)), rotation, self.heads)
        branch = self.proj(segmenter_kernels.attention(qkv, self.heads))
        norm = self.norm2
        x, normed = segmenter_kernels.add_layernorm(x, branch, norm.weight, norm.bias, norm.eps)
        return self.fc2(self.fc1(normed, gelu=True), residual=x)


def quantize_blocks(model: Segmenter, kind: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
    """Put 8-bit blocks in place of a network's own, LayerScale folded before; `dtype` is that of the rest."""
    parts: list[nn.Module] = [model.encoder]
    if isinstance(model.decoder, MaskDecoder):
        parts.append(model.decoder)
    for part in parts:
        blocks = [cast(Block, block) for block in cast(nn.ModuleList, part.blocks)]
        part.blocks = nn.ModuleList(EightBitBlock(block, kind, device, dtype) for block in blocks)
