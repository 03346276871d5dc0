"""The ops in plain PyTorch, as `segmenter.ops` writes them: what runs where no GPU is, and a test holds the two equal.

This package imports nothing of `segmenter`, so that kernels can be used and tuned from a plain checkout.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter_kernels.quantize import LARGEST


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Queries and keys of [B, N, 3C], packed (3, A, D), turned by their tokens' angles, cos and sin [N, D / 2]."""
    B, N, C3 = qkv.shape
    x = qkv.reshape(B, N, 3 * heads, C3 // (3 * heads))
    one, other = x[:, :, : 2 * heads].chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.cat((one * cos - other * sin, other * cos + one * sin), dim=-1).to(qkv.dtype)
    return torch.cat((turned, x[:, :, 2 * heads :]), dim=2).reshape(B, N, C3)


def attention(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """`softmax(q k^T D^-0.5) v`, probabilities dropped out: [B, N, 3C], packed (3, A, D), to [B, N, C]."""
    q, k, v = _unpacked(qkv, heads)
    return _packed(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout))


def attention_backward(grad: Tensor, qkv: Tensor, heads: int) -> Tensor:
    """Gradient of `attention` with respect to qkv, from that with respect to its output [B, N, C]."""
    q, k, v = (part.float() if part.dtype.itemsize < 4 else part for part in _unpacked(qkv, heads))
    B, A, N, D = q.shape
    g = grad.to(q.dtype).reshape(B, N, A, D).transpose(1, 2)
    p = (q @ k.mT * D**-0.5).softmax(dim=-1)  # [B, A, N, N]
    grad_p = g @ v.mT
    grad_s = p * (grad_p - (grad_p * p).sum(dim=-1, keepdim=True)) * D**-0.5
    return torch.cat([_packed(x) for x in (grad_s @ k, grad_s.mT @ q, p.mT @ g)], dim=-1).to(qkv.dtype)


def patch_embed(image: Tensor, weight: Tensor, bias: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    """[B, 3, H, W], [C, 3, P, P], [C], [1, E + h w, C], [1, E, C] to [B, E + h w, C]."""
    patches = F.conv2d(image, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    return torch.cat((tokens.expand(image.shape[0], -1, -1), patches), dim=1) + position


def add_layernorm(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(x + r, LayerNorm(x + r))`."""
    total = x + r
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x weight^T + bias)`, exact."""
    return F.gelu(F.linear(x, weight, bias))


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`residual + x weight^T + bias`."""
    return residual + F.linear(x, weight, bias)


def quantize(x: Tensor, kind: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits, `kind`, and what each is divided by: [..., C] to [..., C] and [...]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = wide.abs().amax(dim=-1) / LARGEST[kind]
    scale = torch.where(scale == 0.0, 1.0, scale)
    return _in_8_bits(wide / scale[..., None], kind), scale


def layernorm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, r: Tensor | None = None, kind: torch.dtype = torch.int8
) -> tuple[Tensor, Tensor, Tensor]:
    """x + r, and what `quantize` makes of its LayerNorm."""
    total = x if r is None else x + r
    return total, *quantize(layernorm(total, weight, bias, eps), kind)


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
    product: Callable[[Tensor, Tensor], Tensor] = F.linear,
) -> Tensor:
    """`linear_int8` and `linear_fp8`, computed in the scales' type: [..., O] like the bias, or in 8 bits like x.

    product: what makes x weight^T of the two in that type.
    """
    wide = weight_scale.dtype
    y = product(x.to(wide), weight.to(wide)) * (x_scale[..., None] if x_scale.dim() else x_scale) * weight_scale
    y = y + bias.to(wide)
    y = F.gelu(y) if gelu else y
    y = y if residual is None else y + residual
    if out_scale is None:
        return y.to(bias.dtype)
    return _in_8_bits((y / out_scale).clamp(-LARGEST[x.dtype], LARGEST[x.dtype]), x.dtype)


def mask_scores(patches: Tensor, classes: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the classes of the cosines of [B, N, C] with [B, K, C]: [B, N, K]."""
    scores = _unit_rows(patches) @ _unit_rows(classes).transpose(1, 2)
    return F.layer_norm(scores, scores.shape[-1:], weight, bias, eps)


def upsample_argmax(masks: Tensor, size: tuple[int, int], crop: tuple[int, int] | None = None) -> Tensor:
    """[B, K, h, w] to labels [B, H, W] or, cropped, [B, H', W']: bilinear, then the first largest class."""
    logits = F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)
    if crop is not None:
        logits = logits[..., : crop[0], : crop[1]]
    return logits.argmax(dim=1).to(label_dtype(masks))


def merge_windows(
    masks: Tensor, size: tuple[int, int], window: int, stride: int, side: tuple[int, int] | None = None
) -> Tensor:
    """[R C, K, h, w], the masks of all windows of a picture, to its labels [H, W]: the class of the largest mean."""
    return merged_logits(masks, size, window, stride, side).argmax(dim=0).to(label_dtype(masks))


def merged_logits(
    masks: Tensor, size: tuple[int, int], window: int, stride: int, side: tuple[int, int] | None = None
) -> Tensor:
    """What `merge_windows` compares: the mean [K, H, W] of the windows' logits."""
    logits = F.interpolate(masks, size=side or (window, window), mode="bilinear", align_corners=False)
    total, count = logits.new_zeros(masks.shape[1], *size), logits.new_zeros(size)
    ys, xs = ([*range(0, length - window, stride), length - window] for length in size)
    for one, (y, x) in zip(logits, ((y, x) for y in ys for x in xs), strict=True):
        total[:, y : y + window, x : x + window] += one[:, :window, :window]
        count[y : y + window, x : x + window] += 1
    return total / count


def label_dtype(masks: Tensor) -> torch.dtype:
    """Type of labels made from masks [B, K, h, w]."""
    return torch.uint8 if masks.shape[1] <= 256 else torch.int16


def _in_8_bits(x: Tensor, kind: torch.dtype) -> Tensor:
    return (x.round() if kind == torch.int8 else x).to(kind)


def _unpacked(qkv: Tensor, heads: int) -> list[Tensor]:
    B, N, C3 = qkv.shape
    C = C3 // 3
    return [part.reshape(B, N, heads, C // heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]


def _packed(x: Tensor) -> Tensor:
    B, A, N, D = x.shape
    return x.transpose(1, 2).reshape(B, N, A * D)


def _unit_rows(x: Tensor) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16):
        wide = x.float()
        return (wide / wide.norm(dim=-1, keepdim=True)).to(x.dtype)
    return x / x.norm(dim=-1, keepdim=True)
