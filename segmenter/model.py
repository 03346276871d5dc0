"""Segmenter: encoder, decoder, and the padding around them."""

from types import ModuleType, SimpleNamespace
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from segmenter import ops as reference_ops
from segmenter.config import EncoderConfig, SegmenterConfig
from segmenter.decoder import LinearDecoder, MaskDecoder
from segmenter.errors import ConfigError, ImageError
from segmenter.ops import NAMES, Ops
from segmenter.vit import Block, Encoder


def pad_to_patches(image: Tensor, patch_size: int) -> Tensor:
    """Zero-pad [B, 3, H, W] on the right and at the bottom to multiples of the patch size."""
    H, W = image.shape[-2:]
    down, right = -H % patch_size, -W % patch_size
    return F.pad(image, (0, right, 0, down)) if down or right else image


class Segmenter(nn.Module):
    """The network of Strudel et al. 2021. [B, 3, H, W] normalised -> logits [B, K, H, W], for any H and W.

    `ops` is a module with the functions of `segmenter.ops` (the default) under the same names; parameters and their
    names do not depend on it, and equal those of the official implementation.
    """

    def __init__(self, config: SegmenterConfig, ops: ModuleType | None = None) -> None:
        super().__init__()
        self.config = config
        table = _ops_table(ops or reference_ops, config.encoder)
        self.ops = table
        self.encoder = Encoder(config.encoder, table)
        self.decoder: LinearDecoder | MaskDecoder
        if config.decoder.kind == "linear":
            self.decoder = LinearDecoder(config.encoder.width, config.num_classes)
        else:
            self.decoder = MaskDecoder(config.decoder, config.encoder.width, config.num_classes, table)

    def masks(self, image: Tensor) -> Tensor:
        """Class masks on the patch grid of the padded image: [B, 3, H, W] -> [B, K, ceil(H / P), ceil(W / P)]."""
        P, (H, W) = self.config.encoder.patch_size, image.shape[-2:]
        return self.decoder(self.patch_tokens(image), (-(-H // P), -(-W // P)))

    def masks_of(self, embedded: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class masks [B, K, h, w] of what an embedding like `Encoder.embed` gave at a grid (h, w)."""
        return self.decoder(self.encoder.encode(embedded, grid)[:, self.config.encoder.extra_tokens :], grid)

    def forward(self, image: Tensor) -> Tensor:
        masks, P, (H, W) = self.masks(image), self.config.encoder.patch_size, image.shape[-2:]
        size = masks.shape[2] * P, masks.shape[3] * P
        return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[..., :H, :W]

    def labels(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] normalised -> labels [B, H, W] uint8, without holding the full-resolution logits where fused."""
        masks, P, (H, W) = self.masks(image), self.config.encoder.patch_size, image.shape[-2:]
        size = masks.shape[2] * P, masks.shape[3] * P
        return self.ops.upsample_argmax(masks, size, (H, W))

    def get_attention_map_enc(self, im: Tensor, layer_id: int) -> Tensor:
        """Attention probabilities [B, A, E + h w, E + h w] of an encoder layer; the official code's name for it."""
        return self.encoder.attention_map(pad_to_patches(im, self.config.encoder.patch_size), layer_id)

    def get_attention_map_dec(self, im: Tensor, layer_id: int) -> Tensor:
        """Attention probabilities [B, A, h w + K, h w + K] of a mask transformer layer, named as in the official code.

        Raises ConfigError for a linear decoder, which has none.
        """
        if not isinstance(self.decoder, MaskDecoder):
            raise ConfigError("a linear decoder has no attention maps; ask get_attention_map_enc instead")
        return self.decoder.attention_map(self.patch_tokens(im), layer_id)

    def fold_layer_scale(self) -> None:
        """Multiply LayerScale factors into the linear layers before them, in place (exact up to rounding)."""
        for block in self.encoder.blocks:
            cast(Block, block).fold_layer_scale()

    def patch_tokens(self, image: Tensor) -> Tensor:
        """What the decoder reads: [B, 3, H, W] -> tokens [B, ceil(H / P) ceil(W / P), C], without the extra ones.

        Raises ImageError for an image of another number of axes.
        """
        if image.dim() != 4:
            raise ImageError(f"image {list(image.shape)}: expected [B, 3, H, W]; a single image is image[None]")
        padded = pad_to_patches(image, self.config.encoder.patch_size)
        return self.encoder(padded)[:, self.config.encoder.extra_tokens :]


def _ops_table(module: ModuleType, encoder: EncoderConfig) -> Ops:
    """The ops of a module as a plain namespace: unlike a module it can be copied with the network.

    `rotate` may be lacking where no positions are rotary, and `layernorm`, which is then PyTorch's.
    """
    found = {"layernorm": reference_ops.layernorm} | {
        name: getattr(module, name) for name in NAMES if hasattr(module, name)
    }
    missing = [name for name in NAMES if name not in found and (name != "rotate" or encoder.positions == "rotary")]
    if missing:
        raise ConfigError(
            f"ops module {module.__name__} lacks {', '.join(missing)}; it needs all of segmenter.ops.NAMES"
        )
    return cast(Ops, SimpleNamespace(**found))
