"""The ops of 8-bit blocks in PyTorch, for a CPU: every value rounded where the kernels round it, the rest in float32.

Whatever shows in the labels is then what 8 bits cost, and neither float16 nor the order of a sum.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from segmenter_kernels import reference
from segmenter_kernels.quantize import LARGEST

FLOAT8 = torch.float8_e4m3fn
Sums = Literal["exact", "apart", "whole"]
Attention = Literal["float32", "int8 scores", "fp8 scores", "fp8"]
APART = 128  # products of a tile's step, which SPLIT adds up apart
_STEP = 32  # products of one instruction
_KEPT = 13  # bits after a sum's first
_CELLS = 2**18  # products held at a time, few enough for a core's cache


@dataclass(frozen=True)
class EightBitOps:
    """What `EightBitBlock` asks of `segmenter_kernels`.

    sums: of float8 products: exact, as Hopper adds them up 128 at a time, or as it adds up all of a layer.
    attention_in: which of its operands are in 8 bits. In int8 queries and keys have a scale a token and head, in float8
    one in all, the least that holds; so have values, and probabilities go from 0 to 448.
    """

    sums: Sums = "exact"
    attention_in: Attention = "float32"

    def quantize(self, x: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return reference.quantize(x, dtype)

    def layernorm_quantize(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, r: Tensor | None, *, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        return reference.layernorm_quantize(x, weight, bias, eps, r, dtype)

    # `dtype` is the bias's here
    def linear_int8(self, *operands: Tensor, dtype: torch.dtype, **options: Any) -> Tensor:
        return reference.quantized_linear(*operands, **options)

    def linear_fp8(self, *operands: Tensor, dtype: torch.dtype, **options: Any) -> Tensor:
        if self.sums == "exact":
            return reference.quantized_linear(*operands, **options)
        together = APART if self.sums == "apart" else operands[0].shape[-1]
        return reference.quantized_linear(*operands, **options, product=partial(hopper_linear, together=together))

    def linear_residual(self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return reference.linear_residual(x, weight, bias, residual)

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        return reference.rotate(qkv, cos, sin, heads)

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        """[B, N, 3C] -> [B, N, C]."""
        if self.attention_in == "float32":
            return reference.attention(qkv, heads)
        B, N, width = qkv.shape
        q, k, v = qkv.view(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)  # [B, A, N, D] each
        if self.attention_in == "int8 scores":
            (q, q_scale), (k, k_scale) = reference.quantize(q), reference.quantize(k)
            scores = q.float() @ k.float().mT * q_scale[..., None] * k_scale[..., None, :]
        else:
            scores = _in_float8(q) @ _in_float8(k).mT
        scores *= q.shape[-1] ** -0.5
        if self.attention_in != "fp8":
            mixed = scores.softmax(-1) @ v
        else:
            p = (scores - scores.amax(-1, keepdim=True)).exp()
            mixed = (p * LARGEST[FLOAT8]).to(FLOAT8).float() @ _in_float8(v)
            mixed /= p.sum(-1, keepdim=True) * LARGEST[FLOAT8]
        return mixed.transpose(1, 2).reshape(B, N, width // 3)


def hopper_linear(x: Tensor, weight: Tensor, together: int) -> Tensor:
    """x weight^T as Hopper's matrix units sum float8 products: [..., K] and [N, K] to [..., N], all float32.

    An instruction adds 32 products to a sum. All are cut off, towards 0, below 2^-13 of the largest one's leading bit,
    and so is the result. together: products summed so, a multiple of 32; such sums are added in float32.
    Sources: DeepSeek-V3 technical report, section 3.5.2 (14 bits); Zhang et al. 2024, SageAttention2
    (sums of 1 + 8 + 13 bits). With 128 together it errs as an H100 was measured to do, see `segmenter_kernels.judging`.
    """
    rows = x.reshape(-1, x.shape[-1])
    done = [
        torch.stack([_sum_of(*pair) for pair in zip(part.split(together, 1), weight.split(together, 1), strict=True)])
        for part in rows.split(max(1, _CELLS // (len(weight) * _STEP)))
    ]
    return torch.cat([sums.sum(0) for sums in done]).view(*x.shape[:-1], len(weight))


def _sum_of(x: Tensor, weight: Tensor) -> Tensor:
    total = x.new_zeros(len(x), len(weight))
    for a, b in zip(x.split(_STEP, 1), weight.split(_STEP, 1), strict=True):
        products = a[:, None] * b  # exact: 4 bits by 4
        largest = torch.maximum(products.abs().amax(-1), total.abs())
        exponent = torch.frexp(largest).exponent  # of the bit above the first
        unit = torch.ldexp(torch.ones_like(largest), exponent - 1 - _KEPT)
        whole = (products / unit[..., None]).trunc().sum(-1) + (total / unit).trunc()
        # float32 keeps 23 bits after the first
        total = ((whole * unit).view(torch.int32) & -(2 ** (23 - _KEPT))).view(torch.float32)
    return total


def _in_float8(x: Tensor) -> Tensor:
    """As float8 holds it with one scale, in float32."""
    q, scale = reference.quantize(x.flatten(), FLOAT8)
    return (q.float() * scale).view(x.shape)
