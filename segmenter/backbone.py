"""Pretrained ViTs: weights under the names publishers give them become an encoder's, of another patch or grid.

What the encoder has no part for is refused by its name: features without it would be others than the source's.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from segmenter.augreg import read_augreg
from segmenter.checkpoint import read_tensors
from segmenter.config import HEAD_WIDTH, EncoderConfig, whole_patches
from segmenter.dinov3 import PERIODS, is_dinov3, read_dinov3
from segmenter.errors import CheckpointError, ConfigError
from segmenter.fidelity import NEW, REARRANGED, Origin, Shape
from segmenter.patch_resize import PatchResize, resize_patches
from segmenter.pickles import PICKLES, read_pickle
from segmenter.vit import for_images

# parts other ViTs have, and which of their tensors tell
_FOREIGN = (
    ("rotary positions (RoPE) of another kind than DINOv3's", re.compile(r"rope|.*\.(rope|freqs)\b|.*periods$")),
    ("a LayerNorm before the blocks", re.compile(r"norm_pre\.")),
    ("a norm of the class token's own", re.compile(r"cls_norm\.")),
    ("normalised queries and keys", re.compile(r"blocks\.\d+\.attn\.[qk]_norm\.")),
    ("a gated feed-forward (SwiGLU)", re.compile(r"(blocks|layer)\.\d+\.mlp\.(w\d+|fc1_[gx]|gate_proj)\.")),
    ("relative positions", re.compile(r".*(relative_position|rel_pos)")),
    ("a convolutional stem (hybrid ViT)", re.compile(r"conv_root/|block\d+/|patch_embed\.backbone\.")),
)
_REGISTERS = ("register_tokens", "reg_token")  # DINOv2's and timm's name
# what classifies or pretrains, and nothing reads in segmentation: classifiers, the token of masked patches, and a norm
# of small crops
_HARMLESS = re.compile(r"(head|head_dist|pre_logits|fc_norm|head_drop|local_cls_norm)[./]|(embeddings\.)?mask_token$")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass
class Backbone:
    """ViT weights under the encoder's names, the encoder they fit, and where each came from."""

    path: Path
    encoder: EncoderConfig
    tensors: dict[str, Tensor]
    origins: dict[str, Origin]
    left_out: dict[str, Shape]
    normalization: str  # the images the source was trained on, a key of `segmenter.config.NORMALIZATIONS`
    position_resize: str  # how positions are resized as weights come in, a mode of `segmenter.vit.resize_position`

    def keep_blocks(self, count: int) -> None:
        """Keep the first `count` blocks; the final LayerNorm, whose own followed another block, begins at 1 and 0.

        Raises CheckpointError when there are not as many.
        """
        depth = self.encoder.depth
        if not 1 <= count <= depth:
            raise CheckpointError(f"{self.path}: asked for the first {count} blocks of {depth}; wanted 1 to {depth}")
        if count == depth:
            return
        for name in list(self.tensors):
            match = _BLOCK.match(name)
            if name.startswith("norm.") or (match and int(match[1]) >= count):
                self._leave(name)
        for name, value in (("weight", torch.ones), ("bias", torch.zeros)):
            self.tensors[f"norm.{name}"] = value(self.encoder.width)
            self.origins[f"norm.{name}"] = Origin("", (), NEW)
        self.encoder = replace(self.encoder, depth=count)

    def change_patch(self, size: int, method: PatchResize) -> None:
        """Resize the patch kernel to another patch size, the grid of patches staying as it is.

        Raises ConfigError for a size the encoder does not take.
        """
        if size == self.encoder.patch_size:
            return
        h, w = self.encoder.grid
        self.encoder = replace(self.encoder, patch_size=size, image_size=(h * size, w * size))
        name = "patch_embed.proj.weight"
        self.tensors[name] = resize_patches(self.tensors[name], size, method)
        self.origins[name] = self.origins[name].resized()

    def change_image_size(self, size: tuple[int, int], mode: str | None = None) -> None:
        """Resize learnt position embeddings for images of (H, W), rounded up to whole patches.

        mode: as `segmenter.vit.resize_position` has it; None: as the source does.
        """
        before = self.tensors.get("pos_embed")
        self.encoder, position = for_images(self.encoder, before, size, mode or self.position_resize)
        if position is not None and position is not before:
            self.tensors["pos_embed"] = position
            self.origins["pos_embed"] = self.origins["pos_embed"].resized()

    def _leave(self, name: str) -> None:
        del self.tensors[name]
        if (origin := self.origins.pop(name, None)) and origin.key:
            self.left_out[origin.key] = origin.shape


def load_backbone(path: Path) -> Backbone:
    """ViT weights from a file: `.npz` under Google's names; safetensors or a pickle under timm's, DINOv2's or DINOv3's.

    The configuration is read off the shapes: 64 channels a head where the file does not say, square training grid,
    LayerNorm eps 1e-6, and 1e-5 for DINOv3. Positions are resized as DINOv2 does where the file has LayerScale;
    bicubic, antialiased as the weights come in, where tokens have no positions of their own (registers; some of timm's
    ViTs); else bilinear, as the official Segmenter does, Google's files too, which its timm 0.4.12 reads.
    Rotary positions have no grid, and the encoder gets the image size that is usual here. Tensors of the encoder that
    are lacking stay so: loading the weights names them.
    Raises CheckpointError for keys or shapes that are no such ViT, and for parts the encoder does not have.
    """
    heads = 0
    if path.suffix == ".npz":
        tensors, origins, rest, heads = read_augreg(path)
    else:
        found = read_pickle(path) if path.suffix in PICKLES else read_tensors(path)
        if is_dinov3(found):
            tensors, origins, rest = read_dinov3(path, found, _PARAMETER)
        else:
            tensors, origins, rest = {}, {}, {}
            for key, value in found.items():
                name = key.removeprefix("backbone.")
                if _PARAMETER.fullmatch(name):
                    tensors[name], origins[name] = value.float(), Origin(key, tuple(value.shape))
                else:
                    rest[name] = value
    _require_expressible(path, tensors, rest)
    encoder = _encoder_of(path, tensors, heads)
    _complete_tokens(tensors, origins, encoder)
    return Backbone(
        path,
        encoder,
        tensors,
        origins,
        left_out={name: tuple(value.shape) for name, value in rest.items()},
        normalization="vit" if path.suffix == ".npz" else "imagenet",
        position_resize="antialiased" if encoder.position_resize == "bicubic" else encoder.position_resize,
    )


# every parameter the encoder may have, as timm and DINOv2 name it too, and registers under timm's name
_PARAMETER = re.compile(
    r"cls_token|dist_token|pos_embed|register_tokens|reg_token|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d+\.((norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|ls[12]\.gamma)|rotary\.periods"
)


def _require_expressible(path: Path, tensors: dict[str, Tensor], rest: dict[str, Tensor]) -> None:
    """Raises CheckpointError naming the parts of another network, and tensors nobody knows the meaning of.

    tensors: the encoder's; rest: what else the file holds.
    """
    foreign = {}
    for part, pattern in _FOREIGN:
        if key := next(filter(pattern.match, rest), None):
            foreign[part] = key
    vit = "patch_embed.proj.weight" in tensors
    if vit and not foreign and not {"pos_embed", PERIODS} & set(tensors):
        foreign["no position embeddings"] = "pos_embed is not in it"
    if foreign:
        said = ", ".join(f"{part} ({key})" for part, key in foreign.items())
        raise CheckpointError(
            f"{path}: has {said}, which this network cannot express, and its features would be others;"
            " use a plain ViT: AugReg, DeiT, DINOv2, or DINOv3's S, B or L"
        )
    if any(key.startswith(("encoder.", "decoder.")) for key in rest):
        raise CheckpointError(
            f"{path}: a whole Segmenter, not a ViT; put its variant.yml beside it, or name its folder"
        )
    unknown = [key for key, value in rest.items() if value.numel() and not _HARMLESS.match(key)]
    if unknown and vit:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise CheckpointError(
            f"{path}: {', '.join(unknown[:3])}{more}: no part of this network, and nobody knows what leaving it out"
            " would change; use weights of a plain ViT, or take these tensors out of the file"
        )


def _encoder_of(path: Path, tensors: dict[str, Tensor], heads: int) -> EncoderConfig:
    """The encoder that tensors are of, read off their shapes."""
    rotary = PERIODS in tensors
    try:
        projection = tensors["patch_embed.proj.weight"]
        width, patch = projection.shape[0], projection.shape[-1]
        depth = 1 + max(int(match[1]) for match in map(_BLOCK.match, tensors) if match)
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        position = tensors[PERIODS if rotary else "pos_embed"]
        positions = position.shape[-1 if rotary else 1]
        if (projection.ndim, position.ndim) != (4, 1 if rotary else 3):
            raise ValueError(f"patch_embed.proj.weight {tuple(projection.shape)}, positions {tuple(position.shape)}")
        if rotary and not bool((position > 0).all()):
            raise ValueError("a period that is not above 0")
    except (KeyError, ValueError, IndexError) as error:
        lacking = f"{error.args[0]} is not in it" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: not a ViT under timm's, DINOv2's, DINOv3's or Google's key names ({lacking}); use weights of such"
            " a ViT, or convert their names"
        ) from error
    registers = sum(tensors[name].shape[1] for name in _REGISTERS if name in tensors and tensors[name].ndim == 3)
    distilled, scaled = "dist_token" in tensors, "blocks.0.ls1.gamma" in tensors
    head_width = 4 * positions if rotary else HEAD_WIDTH
    if not heads and width % head_width:
        source = "the file's periods" if rotary else "timm's and DINOv2's ViTs"
        raise CheckpointError(
            f"{path}: width {width}: wanted a multiple of {head_width}, the channels of a head in {source}; use weights"
            " of another ViT"
        )
    resize: Literal["bilinear", "bicubic", "dinov2"] = "dinov2" if scaled and not rotary else "bilinear"
    if rotary:
        image_size = whole_patches(EncoderConfig.image_size, patch)
    else:
        side, all_tokens = _grid_of(path, positions, 1 + distilled)
        image_size = side * patch, side * patch
        resize = resize if all_tokens and not registers else "bicubic"
    try:
        return EncoderConfig(
            patch_size=patch,
            image_size=image_size,
            width=width,
            depth=depth,
            heads=heads or width // head_width,
            mlp_width=hidden,
            distilled=distilled,
            registers=registers,
            layer_scale=scaled,
            norm_eps=1e-5 if rotary else 1e-6,
            position_resize=resize,
            positions="rotary" if rotary else "learnt",
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; use weights of another ViT") from error


def _grid_of(path: Path, positions: int, tokens: int) -> tuple[int, bool]:
    """Side of the square grid that so many positions are of, and whether `tokens` extra ones have positions too."""
    of_tokens = positions == 1 or not _is_square(positions)
    count = positions - tokens if of_tokens else positions
    if not _is_square(count):
        raise CheckpointError(f"{path}: {count} position embeddings are no square grid; resize them first")
    return math.isqrt(count), of_tokens


def _complete_tokens(tensors: dict[str, Tensor], origins: dict[str, Origin], encoder: EncoderConfig) -> None:
    """Give registers this project's name, and tokens that have no positions, as registers never do, positions of 0."""
    for name in _REGISTERS:
        if name in tensors:
            tensors["register_tokens"], origins["register_tokens"] = tensors.pop(name), origins.pop(name)
    if "pos_embed" not in tensors:
        return
    position, (h, w) = tensors["pos_embed"], encoder.grid
    given = position.shape[1] - h * w
    if given < encoder.extra_tokens:
        without = position.new_zeros(1, encoder.extra_tokens - given, position.shape[2])
        tensors["pos_embed"] = torch.cat((position[:, :given], without, position[:, given:]), dim=1)
        origins["pos_embed"] = replace(origins["pos_embed"], how=REARRANGED)


def _is_square(count: int) -> bool:
    return count >= 1 and math.isqrt(count) ** 2 == count
