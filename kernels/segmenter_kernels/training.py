"""The ops for training: `Segmenter(config, ops=segmenter_kernels.training)`.

Attention, rotary positions, add + LayerNorm and a block's linear layers with GELU or residual run on our kernels,
forward and backward; patch embedding, LayerNorm alone, mask scores and attention with dropout, which have no kernels
with gradients, are plain PyTorch. Under autocast, products take operands of its type and LayerNorm the wider one of its
inputs', as PyTorch's own rules have it.
"""

import torch
from torch import Tensor

from segmenter_kernels import add_layernorm as _add_layernorm
from segmenter_kernels import attention as _attention
from segmenter_kernels import linear_gelu as _linear_gelu
from segmenter_kernels import linear_residual as _linear_residual
from segmenter_kernels import reference, rotate, upsample_argmax
from segmenter_kernels.reference import layernorm, mask_scores, patch_embed

__all__ = [
    "add_layernorm",
    "attention",
    "layernorm",
    "linear_gelu",
    "linear_residual",
    "mask_scores",
    "patch_embed",
    "rotate",
    "upsample_argmax",
]


def attention(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """`segmenter_kernels.attention` in autocast's type, PyTorch's with dropout. Raises ValueError as it does."""
    (qkv,) = _operands(qkv)
    return reference.attention(qkv, heads, dropout) if dropout else _attention(qkv, heads)


def add_layernorm(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`segmenter_kernels.add_layernorm` in the widest type of its inputs. Raises ValueError as it does."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, r.dtype), weight.dtype)
    return _add_layernorm(x.to(dtype), r.to(dtype), weight.to(dtype), bias.to(dtype), eps)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`segmenter_kernels.linear_gelu` in autocast's type. Raises ValueError as it does."""
    return _linear_gelu(*_operands(x, weight, bias))


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`segmenter_kernels.linear_residual` with the product in autocast's type. Raises ValueError as it does."""
    x, weight, bias = _operands(x, weight, bias)
    return _linear_residual(x, weight, bias, residual.to(x.dtype))


def _operands(*tensors: Tensor) -> list[Tensor]:
    """The tensors as autocast, where it is on, gives them to a matrix product."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [x.to(torch.get_autocast_dtype(kind)) for x in tensors]
