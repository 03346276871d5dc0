"""Transformer blocks with the linear layers that follow a LayerNorm in 8 bits, on our Triton kernels.

Weights get a scale an output channel, once; activations one a token, as they come, so nothing is calibrated. The kernel
of the norm writes its rows in 8 bits, so that qkv and fc1 cost no pass more than in 16. The inputs of proj and fc2 come
from attention and from GELU, whose kernels never hold a whole row: to quantise them is a pass of its own, and takes
longer than the products gain (H100, Seg-B at 512 x 512, batch 8: before fc2 about 50 us, where its product takes 39.6
in int8 and 66 in fp16; before proj 14.7, where it takes 12 and 19). These two layers and all else stay in 16 bits.
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
    """A linear layer, its weights in `kind` on `device`: [..., I] in `kind` and scales [...] -> [..., O] in `dtype`."""

    def __init__(self, linear: nn.Linear, kind: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
        # a row of the weights is an output channel, as a row of activations is a token
        self.weight, self.scale = segmenter_kernels.quantize(linear.weight.detach().to(device), dtype=kind)
        self.bias = linear.bias.detach().to(device, dtype)
        self.multiply, self.dtype = _LINEAR[kind], dtype

    def __call__(self, q: Tensor, scale: Tensor, gelu: bool = False) -> Tensor:
        return self.multiply(q, self.weight, scale, self.scale, self.bias, gelu=gelu, dtype=self.dtype)


class EightBitBlock(nn.Module):
    """A `segmenter.vit.Block` for inference. [B, N, C] -> [B, N, C]."""

    def __init__(self, block: Block, kind: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads, self.kind = block.norm1, block.norm2, block.attn.heads, kind
        self.proj, self.fc2 = block.attn.proj, block.mlp.fc2
        self.qkv, self.fc1 = (EightBitLinear(layer, kind, device, dtype) for layer in (block.attn.qkv, block.mlp.fc1))

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        _, q, scale = self._normed(self.norm1, x)
        qkv = turned(segmenter_kernels, self.qkv(q, scale), rotation, self.heads)
        branch = self.proj(segmenter_kernels.attention(qkv, self.heads))
        x, q, scale = self._normed(self.norm2, x, branch)
        hidden = self.fc1(q, scale, gelu=True)
        return segmenter_kernels.linear_residual(hidden, self.fc2.weight, self.fc2.bias, x)

    def _normed(self, norm: nn.LayerNorm, x: Tensor, r: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return segmenter_kernels.layernorm_quantize(x, norm.weight, norm.bias, norm.eps, r=r, dtype=self.kind)


def quantize_blocks(model: Segmenter, kind: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
    """Put 8-bit blocks in place of a network's own, LayerScale folded before; `dtype` is that of the rest."""
    parts: list[nn.Module] = [model.encoder]
    if isinstance(model.decoder, MaskDecoder):
        parts.append(model.decoder)
    for part in parts:
        blocks = [cast(Block, block) for block in cast(nn.ModuleList, part.blocks)]
        part.blocks = nn.ModuleList(EightBitBlock(block, kind, device, dtype) for block in blocks)
