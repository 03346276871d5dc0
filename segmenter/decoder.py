"""Decoders: patch tokens [B, N, C] to class masks [B, K, h, w]."""

import torch
from torch import Tensor, nn

from segmenter.config import DecoderConfig
from segmenter.ops import Ops
from segmenter.vit import Block, LayerNorm, attention_map_of, init_weights


def to_grid(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h w, K] -> [B, K, h, w], a channels-last view: on other strides PyTorch upsamples several times slower."""
    B, _, K = scores.shape
    return scores.reshape(B, *grid, K).permute(0, 3, 1, 2)


def _projection(C: int) -> nn.Parameter:
    """A projection of tokens, [C, C], as the official code begins: normal, of standard deviation C^-0.5."""
    shape = torch.empty(C, C)
    # to draw on the meta device, where there are shapes alone, PyTorch loads its compiler, for more than a second
    return nn.Parameter(shape if shape.is_meta else C**-0.5 * torch.randn(C, C))


class LinearDecoder(nn.Module):
    """One linear layer a patch (paper, section 3.2, "Linear"). [B, h w, C] -> [B, K, h, w]."""

    def __init__(self, encoder_width: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(encoder_width, num_classes)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return to_grid(self.head(tokens), grid)


class MaskDecoder(nn.Module):
    """The mask transformer (paper, section 3.2): class embeddings and patches attend, then score each other."""

    def __init__(self, config: DecoderConfig, encoder_width: int, num_classes: int, ops: Ops) -> None:
        super().__init__()
        self.ops, self.num_classes = ops, num_classes
        C = config.width
        self.proj_dec = nn.Linear(encoder_width, C)
        self.cls_emb = nn.Parameter(torch.zeros(1, num_classes, C))
        self.blocks = nn.ModuleList(
            Block(
                C,
                config.heads,
                config.mlp_width,
                dropout=config.dropout,
                drop_path=config.drop_path * index / max(config.depth - 1, 1),
                norm_eps=config.norm_eps,
                layer_scale=False,
                ops=ops,
            )
            for index in range(config.depth)
        )
        self.proj_patch = _projection(C)
        self.proj_classes = _projection(C)
        self.decoder_norm = LayerNorm(C, config.norm_eps, ops)
        self.mask_norm = nn.LayerNorm(num_classes, eps=config.norm_eps)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def embed(self, tokens: Tensor) -> Tensor:
        """Projected patches with the class embeddings behind them, [B, h w + K, C]."""
        return torch.cat((self.proj_dec(tokens), self.cls_emb.expand(tokens.shape[0], -1, -1)), dim=1)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)
        patches = x[:, : -self.num_classes] @ self.proj_patch
        classes = x[:, -self.num_classes :] @ self.proj_classes
        norm = self.mask_norm
        return to_grid(self.ops.mask_scores(patches, classes, norm.weight, norm.bias, norm.eps), grid)

    def attention_map(self, tokens: Tensor, layer: int) -> Tensor:
        """Attention probabilities of one layer, [B, A, h w + K, h w + K]."""
        return attention_map_of(self.blocks, self.embed(tokens), layer)
