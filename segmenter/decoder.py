"""Decoders: patch tokens [B, N, C] to class masks [B, K, h, w]."""

import math

import torch
from torch import Tensor, nn

from segmenter.config import DecoderConfig
from segmenter.ops import Ops
from segmenter.vit import Block, attention_map_of, init_weights

PAPER_CLASSES = 150  # of ADE20K, for which the paper's networks were made


def to_grid(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h w, K] -> [B, K, h, w], a channels-last view: on other strides PyTorch upsamples several times slower."""
    B, _, K = scores.shape
    return scores.reshape(B, *grid, K).permute(0, 3, 1, 2)


class LinearDecoder(nn.Module):
    """One linear layer a patch (paper, section 3.2, "Linear"). [B, h w, C] -> [B, K, h, w]."""

    def __init__(self, encoder_width: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(encoder_width, num_classes)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return to_grid(self.head(tokens), grid)


def reaching(num_classes: int) -> float:
    """Weight at which a LayerNorm over the scores of `num_classes` lets one stand out as far as of the paper's 150.

    Normalised, no score of K is above sqrt(K - 1): 12.2 of 150, but 3.2 of 11, of which softmax makes at most 0.76, and
    the loss of a decoder that is sure stays at 0.27 until this weight has slowly grown.
    """
    return max(1.0, math.sqrt((PAPER_CLASSES - 1) / max(num_classes - 1, 1)))


class MaskDecoder(nn.Module):
    """The mask transformer (paper, section 3.2): class embeddings and patches attend, then score each other.

    Fresh from random weights, its scores reach as far as of 150 classes (see `reaching`); the official code's LayerNorm
    begins at 1 for any number of classes, which is the same for 150.
    """

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
        self.proj_patch = nn.Parameter(C**-0.5 * torch.randn(C, C))
        self.proj_classes = nn.Parameter(C**-0.5 * torch.randn(C, C))
        self.decoder_norm = nn.LayerNorm(C, eps=config.norm_eps)
        self.mask_norm = nn.LayerNorm(num_classes, eps=config.norm_eps)
        self.apply(init_weights)
        nn.init.constant_(self.mask_norm.weight, reaching(num_classes))
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
