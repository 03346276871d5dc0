"""Every op worth fusing, written plainly: what the network means, and the truth each kernel is held to.

`segmenter_kernels` exports the same names with the same signatures. Shapes use the project's glossary: B batch, N
tokens, C width, A heads, D channels a head, K classes, P patch size, H W pixels, h w patch grid, E extra tokens.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = (
    "rotate",
    "attention",
    "patch_embed",
    "layernorm",
    "add_layernorm",
    "linear_gelu",
    "linear_residual",
    "mask_scores",
    "upsample_argmax",
)


class Ops(Protocol):
    """What `Segmenter(config, ops=...)` needs of a module of ops."""

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor: ...
    def attention(self, qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor: ...
    def patch_embed(self, image: Tensor, weight: Tensor, bias: Tensor, position: Tensor, tokens: Tensor) -> Tensor: ...
    def layernorm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor: ...
    def add_layernorm(
        self, x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]: ...
    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor: ...
    def linear_residual(self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor: ...
    def mask_scores(self, patches: Tensor, classes: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor: ...
    def upsample_argmax(self, masks: Tensor, size: tuple[int, int], crop: tuple[int, int] | None = None) -> Tensor: ...


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Queries and keys turned by the angles of their tokens, values as they are: rotary positions.

    qkv: [B, N, 3C], packed as (3, A, D) along the last axis; cos, sin: [N, D / 2], of qkv's type or float32. Channels j
    and j + D / 2 of a head are the two coordinates that turn by angle j. Returns [B, N, 3C] of qkv's type.
    Source: Su et al. 2021, equation 34, with channels paired as in DINOv3.
    """
    B, N, C3 = qkv.shape
    x = qkv.reshape(B, N, 3 * heads, C3 // (3 * heads))
    one, other = x[:, :, : 2 * heads].chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]  # [N, 1, D / 2]
    turned = torch.cat((one * cos - other * sin, other * cos + one * sin), dim=-1).to(qkv.dtype)
    return torch.cat((turned, x[:, :, 2 * heads :]), dim=2).reshape(B, N, C3)


def attention(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """Multi-head self-attention `softmax(q k^T D^-0.5) v` on packed projections.

    qkv: [B, N, 3C], packed as (3, A, D) along the last axis. Returns [B, N, C].
    `dropout` drops attention probabilities, in training only.
    Source: Vaswani et al. 2017, equation 1; packing as the official Segmenter's.
    """
    B, N, C3 = qkv.shape
    C = C3 // 3
    q, k, v = (part.reshape(B, N, heads, C // heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return mixed.transpose(1, 2).reshape(B, N, C)


def patch_embed(image: Tensor, weight: Tensor, bias: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    """Image to tokens: P x P patches projected, extra tokens put in front, position embeddings added.

    image: [B, 3, H, W] normalised, H and W multiples of P; weight: [C, 3, P, P]; bias: [C];
    position: [1, E + h w, C], already at this grid; tokens: [1, E, C]. Returns [B, E + h w, C].
    """
    patches = F.conv2d(image, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    return torch.cat((tokens.expand(image.shape[0], -1, -1), patches), dim=1) + position


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis. x: [..., C]; weight, bias: [C]. Returns [..., C]."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_layernorm(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Residual add and the LayerNorm after it: `(x + r, LayerNorm(x + r))`, both [B, N, C]."""
    total = x + r
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x weight^T + bias)` with the exact (erf) GELU. x: [..., C]; weight: [O, C]. Returns [..., O]."""
    return F.gelu(F.linear(x, weight, bias))


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`residual + x weight^T + bias`. x: [..., I]; weight: [C, I]; residual: [..., C]. Returns [..., C]."""
    return residual + F.linear(x, weight, bias)


def mask_scores(patches: Tensor, classes: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Scores of every patch for every class: L2-normalised rows, their product, LayerNorm over the classes.

    patches: [B, N, C]; classes: [B, K, C]; weight, bias: [K]. Returns [B, N, K].
    Source: Strudel et al. 2021, section 3.2, equation 4, and the normalisation of the official code.
    """
    scores = _unit_rows(patches) @ _unit_rows(classes).transpose(1, 2)
    return F.layer_norm(scores, scores.shape[-1:], weight, bias, eps)


def _unit_rows(x: Tensor) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16):
        # a sum of 768 squares leaves fp16's range once entries average 9
        wide = x.float()
        return (wide / wide.norm(dim=-1, keepdim=True)).to(x.dtype)
    return x / x.norm(dim=-1, keepdim=True)


def upsample_argmax(masks: Tensor, size: tuple[int, int], crop: tuple[int, int] | None = None) -> Tensor:
    """Class masks on the patch grid to labels on pixels: bilinear (align_corners=False), then the first largest class.

    masks: [B, K, h, w]; size: (H, W) to upsample to; crop: (H', W') of the top-left part to keep.
    Returns [B, H', W'] uint8, or int16 when K > 256.
    """
    logits = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    if crop is not None:
        logits = logits[..., : crop[0], : crop[1]]
    return logits.argmax(dim=1).to(label_dtype(masks.shape[1]))


def label_dtype(classes: int) -> torch.dtype:
    """Type of labels of that many classes: uint8, or int16 above 256."""
    return torch.uint8 if classes <= 256 else torch.int16
