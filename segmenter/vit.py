"""The transformer blocks and the ViT encoder: [B, 3, H, W] -> [B, E + N, C]."""

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmenter.config import EncoderConfig, whole_patches
from segmenter.errors import ConfigError
from segmenter.ops import Ops
from segmenter.rotary import Rotary, Rotation, turned

DINOV2_OFFSET = 0.1  # patches; `interpolate_offset` of its released models


def init_weights(module: nn.Module) -> None:
    """The paper's initialisation: truncated normal (std 0.02) weights, zero biases, identity LayerNorms."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al. 2016): drop a whole residual branch for a sample. x: [B, N, C]."""
    if rate == 0.0 or not training:
        return x
    keep = 1.0 - rate
    mask = x.new_empty(x.shape[0], 1, 1).bernoulli_(keep)
    return x * mask / keep


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` by `ops.layernorm`. [.., C] -> [.., C]."""

    def __init__(self, width: int, eps: float, ops: Ops) -> None:
        super().__init__(width, eps=eps)
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layernorm(x, self.weight, self.bias, self.eps)


class LayerScale(nn.Module):
    """A learnt factor a channel on a residual branch (Touvron et al. 2021). [.., C] -> [.., C]."""

    def __init__(self, width: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))


class Attention(nn.Module):
    """Self-attention with packed projections. [B, N, C] -> [B, N, C]."""

    def __init__(self, width: int, heads: int, dropout: float, ops: Ops) -> None:
        super().__init__()
        self.ops, self.heads, self.dropout = ops, heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        mixed = self.ops.attention(self.projected(x, rotation), self.heads, self.dropout if self.training else 0.0)
        return F.dropout(self.proj(mixed), self.dropout, self.training)

    def projected(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """Queries, keys and values as they meet, [B, N, 3C]."""
        return turned(self.ops, self.qkv(x), rotation, self.heads)

    def probabilities(self, x: Tensor, queries: slice = slice(None), rotation: Rotation | None = None) -> Tensor:
        """Attention probabilities [B, A, queries, N], for looking at; of all tokens, or of those in a slice."""
        B, N, C = x.shape
        q, k, _ = self.projected(x, rotation).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return (q[:, :, queries] @ k.transpose(-2, -1) * (C // self.heads) ** -0.5).softmax(dim=-1)


class FeedForward(nn.Module):
    """The two linear layers of a block; the second one's residual add belongs to the block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)


class Block(nn.Module):
    """A pre-norm transformer block. [B, N, C] -> [B, N, C]."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        dropout: float,
        drop_path: float,
        norm_eps: float,
        layer_scale: bool,
        ops: Ops,
    ) -> None:
        super().__init__()
        self.ops, self.dropout, self.drop_path = ops, dropout, drop_path
        self.norm1 = LayerNorm(width, norm_eps, ops)
        self.attn = Attention(width, heads, dropout, ops)
        self.ls1 = LayerScale(width) if layer_scale else None
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = FeedForward(width, mlp_width)
        self.ls2 = LayerScale(width) if layer_scale else None

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        branch = self.attn(self.norm1(x), rotation)
        if self.ls1 is not None:
            branch = branch * self.ls1.gamma
        branch = drop_path(branch, self.drop_path, self.training)
        x, normed = self.ops.add_layernorm(x, branch, self.norm2.weight, self.norm2.bias, self.norm2.eps)
        hidden = self.ops.linear_gelu(normed, self.mlp.fc1.weight, self.mlp.fc1.bias)
        weight: Tensor = self.mlp.fc2.weight
        bias: Tensor = self.mlp.fc2.bias
        if self.ls2 is not None:
            weight, bias = weight * self.ls2.gamma[:, None], bias * self.ls2.gamma
        if not self.training:
            return self.ops.linear_residual(hidden, weight, bias, x)
        branch = F.linear(F.dropout(hidden, self.dropout), weight, bias)
        return x + drop_path(F.dropout(branch, self.dropout), self.drop_path, self.training)

    def fold_layer_scale(self) -> None:
        """Multiply both LayerScale factors into the linear layers before them, in place; the outputs stay the same."""
        with torch.no_grad():
            for scale, linear in ((self.ls1, self.attn.proj), (self.ls2, self.mlp.fc2)):
                if scale is not None:
                    linear.weight.mul_(scale.gamma[:, None])
                    linear.bias.mul_(scale.gamma)
        self.ls1 = self.ls2 = None


class PatchEmbedding(nn.Module):
    """Holds the projection's parameters; `ops.patch_embed` applies them."""

    def __init__(self, patch_size: int, width: int, channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)


def widen_projection(weight: Tensor, channels: int) -> Tensor:
    """Patch projection [C, c, P, P] for images of more channels, whose weights start at zero.

    The network begins as the one it was, to the last bit, and learns what the new channels are worth: a weight of zero
    has a gradient as soon as its input has not.
    """
    return F.pad(weight, (0, 0, 0, 0, 0, channels - weight.shape[1]))


def resize_position(
    position: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], extra: int, mode: str
) -> Tensor:
    """Position embeddings [1, extra + h w, C] interpolated from `old_grid` to `new_grid`, extra tokens kept.

    mode: `bilinear`, as the official code does; `bicubic`; or `dinov2`, bicubic at the places of a grid a tenth of a
    patch larger than the new one, as DINOv2 does to be sure of its size; no antialiasing, align_corners=False. Or
    `antialiased`, bicubic with antialiasing, as weights come in.
    """
    tokens, grid = position[:, :extra], position[:, extra:]
    grid = grid.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    if mode == "dinov2":
        scale = [(new + DINOV2_OFFSET) / old for new, old in zip(new_grid, old_grid, strict=True)]
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    elif mode == "antialiased":
        grid = F.interpolate(grid, size=new_grid, mode="bicubic", align_corners=False, antialias=True)
    else:
        grid = F.interpolate(grid, size=new_grid, mode=mode, align_corners=False)
    return torch.cat((tokens, grid.flatten(2).transpose(1, 2)), dim=1)


def for_images(
    config: EncoderConfig, position: Tensor | None, size: tuple[int, int], mode: str | None = None
) -> tuple[EncoderConfig, Tensor | None]:
    """Configuration and position embeddings, None where nothing is learnt, of an encoder for images of (H, W).

    size: rounded up to whole patches. mode: as `resize_position` has it; None: as the encoder itself does.
    """
    new = replace(config, image_size=whole_patches(size, config.patch_size))
    if position is None or new.grid == config.grid:
        return new, position
    mode = mode or config.position_resize
    if "dinov2" in (mode, new.position_resize):
        # its offset belongs to its own grid; from this one on it would shift the same positions once more
        new = replace(new, position_resize="bicubic")
    return new, resize_position(position, config.grid, new.grid, config.extra_tokens, mode)


class Encoder(nn.Module):
    """Vision transformer. [B, 3, H, W] with H, W multiples of P -> normed tokens [B, E + h w, C]."""

    def __init__(self, config: EncoderConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        C, (h, w) = config.width, config.grid
        self.patch_embed = PatchEmbedding(config.patch_size, C, config.channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, C)) if config.distilled else None
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, C)) if config.registers else None
        rotary = config.positions == "rotary"
        self.pos_embed = None if rotary else nn.Parameter(torch.zeros(1, config.extra_tokens + h * w, C))
        self.rotary = Rotary(config.head_width, config.extra_tokens) if rotary else None
        self.blocks = nn.ModuleList(
            Block(
                C,
                config.heads,
                config.mlp_width,
                dropout=config.dropout,
                drop_path=config.drop_path * index / max(config.depth - 1, 1),
                norm_eps=config.norm_eps,
                layer_scale=config.layer_scale,
                ops=ops,
            )
            for index in range(config.depth)
        )
        self.norm = LayerNorm(C, config.norm_eps, ops)
        self.apply(init_weights)
        for token in (self.pos_embed, self.cls_token, self.dist_token, self.register_tokens):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def embedding(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Position embeddings [1, E + h w, C] at a grid (h, w), zeros if rotary, and the extra tokens [1, E, C]."""
        others = [token for token in (self.dist_token, self.register_tokens) if token is not None]
        tokens = torch.cat((self.cls_token, *others), dim=1) if others else self.cls_token
        config, position = self.config, self.pos_embed
        if position is None:
            return tokens.new_zeros(1, config.extra_tokens + grid[0] * grid[1], config.width), tokens
        # Like the official code, the count decides and not the shape: a 2x8 grid uses a 4x4 embedding unchanged.
        if grid[0] * grid[1] != position.shape[1] - config.extra_tokens:
            return resize_position(position, config.grid, grid, config.extra_tokens, config.position_resize), tokens
        return position, tokens

    def embed(self, image: Tensor) -> Tensor:
        """Tokens before the first block, [B, E + h w, C]."""
        position, tokens = self.embedding(self.grid_of(image))
        proj = self.patch_embed.proj
        assert proj.bias is not None
        return F.dropout(
            self.ops.patch_embed(image, proj.weight, proj.bias, position, tokens), self.config.dropout, self.training
        )

    def grid_of(self, image: Tensor) -> tuple[int, int]:
        """Patches (h, w) of an image of whole ones."""
        P = self.config.patch_size
        return image.shape[2] // P, image.shape[3] // P

    def rotation(self, grid: tuple[int, int], dtype: torch.dtype) -> Rotation | None:
        """What turns queries and keys at a grid (h, w); None where positions are learnt."""
        return None if self.rotary is None else self.rotary(*grid, dtype)

    def encode(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """What `embed` gave at a grid (h, w), through the blocks and the last norm."""
        rotation = self.rotation(grid, x.dtype)
        for block in self.blocks:
            x = block(x, rotation)
        return self.norm(x)

    def forward(self, image: Tensor) -> Tensor:
        return self.encode(self.embed(image), self.grid_of(image))

    def attention_map(self, image: Tensor, layer: int) -> Tensor:
        """Attention probabilities of one layer, [B, A, N, N]."""
        x = self.embed(image)
        return attention_map_of(self.blocks, x, layer, self.rotation(self.grid_of(image), x.dtype))


def attention_map_of(blocks: nn.ModuleList, x: Tensor, layer: int, rotation: Rotation | None = None) -> Tensor:
    """Attention probabilities [B, A, N, N] of `blocks[layer]` for tokens x [B, N, C] entering block 0.

    Raises ConfigError when there is no such layer.
    """
    if not 0 <= layer < len(blocks):
        raise ConfigError(f"layer {layer}: this part has layers 0 to {len(blocks) - 1}")
    for block in list(blocks)[:layer]:
        x = block(x, rotation)
    chosen = cast(Block, blocks[layer])
    return chosen.attn.probabilities(chosen.norm1(x), rotation=rotation)
