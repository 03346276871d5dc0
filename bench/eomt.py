"""A network of another kind at equal width, for context of speed alone: an encoder without a decoder, as EoMT is.

Queries join the tokens in the encoder's last blocks; each gives a class and a mask, the product of its embedding with
the patches' enlarged features. In our own ops with random weights, so its labels mean nothing and are not compared.
Source: Kerssies et al. 2025, "Your ViT is Secretly an Image Segmentation Model", sections 3.2 and 3.3.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmenter.checkpoint import CONFIG_NAME, read_config
from segmenter.config import SegmenterConfig, whole_patches
from segmenter.model import Segmenter, pad_to_patches
from segmenter.preprocess import normalize
from segmenter.vit import init_weights

QUERIES = 100  # the paper's for ADE20K
MASK_STRIDE = 4  # least pixels between mask values


def joined_blocks(depth: int) -> int:
    """How many of the last blocks the queries are in: 4 of a ViT-L's 24, 3 of 12, as in the paper."""
    return min(4 if depth >= 24 else 3, depth)


class _Enlarge(nn.Module):
    """[B, C, h, w] -> [B, C, 2h, 2w]: transposed convolution, GELU, depthwise convolution, LayerNorm over C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(F.gelu(self.up(x))).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EncoderOnly(nn.Module):
    """[B, 3, H, W] normalised -> class scores [B, K, H', W'] of the padded image.

    They lie a patch apart, halved as long as that leaves `MASK_STRIDE` pixels: 4 for patches of 8 and 16, 7 for 14.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        segmenter, C = Segmenter(config), config.encoder.width
        self.config, self.encoder, self.ops = config, segmenter.encoder, segmenter.ops
        self.queries = nn.Parameter(torch.zeros(1, QUERIES, C))
        self.class_head = nn.Linear(C, config.num_classes + 1)  # and none of them
        self.mask_head = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C), nn.GELU(), nn.Linear(C, C))
        doublings = (config.encoder.patch_size // MASK_STRIDE).bit_length() - 1
        self.enlarge = nn.Sequential(*(_Enlarge(C) for _ in range(doublings)))
        for head in (self.class_head, self.mask_head):
            head.apply(init_weights)
        nn.init.trunc_normal_(self.queries, std=1.0)

    def tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, Q, C] and patches [B, h w, C] after the last block, for an image of whole patches."""
        x = self.encoder.embed(image)
        rotation = self.encoder.rotation(self.encoder.grid_of(image), x.dtype)
        first = len(self.encoder.blocks) - joined_blocks(len(self.encoder.blocks))
        for index, block in enumerate(self.encoder.blocks):
            if index == first:
                x = torch.cat((self.queries.expand(len(x), -1, -1), x), dim=1)
                if rotation is not None:  # queries lie nowhere, and are not turned
                    cos, sin = rotation
                    rotation = F.pad(cos, (0, 0, QUERIES, 0), value=1.0), F.pad(sin, (0, 0, QUERIES, 0))
            x = block(x, rotation)
        x = self.encoder.norm(x)
        return x[:, :QUERIES], x[:, QUERIES + self.encoder.config.extra_tokens :]

    def masks(self, image: Tensor) -> Tensor:
        image = pad_to_patches(image, self.config.encoder.patch_size)
        queries, patches = self.tokens(image)
        h, w = (side // self.config.encoder.patch_size for side in image.shape[-2:])
        features = self.enlarge(patches.transpose(1, 2).unflatten(2, (h, w)))
        of_query = torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), features).sigmoid()
        classes = self.class_head(queries).softmax(dim=-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", classes, of_query)

    def labels(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> labels [B, H, W]."""
        size = image.shape[2], image.shape[3]
        return self.ops.upsample_argmax(self.masks(image), whole_patches(size, self.config.encoder.patch_size), size)


class EomtStyle:
    """The network above as an engine, on a GPU in fp16 where there is one; called like a `Session`."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = EncoderOnly(read_config(checkpoint / CONFIG_NAME)).eval()
        self.model = model.to(self.device, self.dtype)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB [B, H, W, 3] -> labels [B, H, W]."""
        x = normalize(images, self.model.config.preprocess).to(self.device, self.dtype)
        return self.model.labels(x).cpu().numpy()

    @torch.inference_mode()
    def masks(self, x: np.ndarray) -> np.ndarray:
        """Normalised float32 [B, 3, H, W] -> class scores: the network alone."""
        return self.model.masks(torch.from_numpy(x).to(self.device, self.dtype)).float().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        depth, on_gpu = len(self.model.encoder.blocks), self.device.type == "cuda"
        does = (
            f"another network for context, random weights: this encoder, {QUERIES} queries in its last"
            f" {joined_blocks(depth)} of {depth} blocks, no decoder; its labels are not compared"
        )
        return {
            "engine": "eomt-style",
            "precision": "fp16" if on_gpu else "fp32",
            "runtime": f"torch {torch.__version__}",
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "does": does,
        }

    def close(self) -> None:
        pass


def open_eomt(artifact: Path, engine: str, floats: str | None, threads: int) -> EomtStyle:
    return EomtStyle(artifact, threads)
