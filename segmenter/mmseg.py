"""mmsegmentation's Segmenters: its names, of releases 0.x and 1.x, become this project's."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from segmenter.checkpoint import load_network, outline
from segmenter.config import HEAD_WIDTH, DecoderConfig, EncoderConfig, SegmenterConfig
from segmenter.datasets import classes_of
from segmenter.errors import CheckpointError, ConfigError
from segmenter.fidelity import AS_IT_IS, REARRANGED, Fidelity, Origin, Shape, account
from segmenter.mmseg_meta import SEGMENTER, Settings, read_classes, read_settings
from segmenter.model import Segmenter
from segmenter.official import Classes

_PARAMETERS = {
    "backbone.cls_token": "encoder.cls_token",
    "backbone.pos_embed": "encoder.pos_embed",
    "decode_head.cls_emb": "decoder.cls_emb",
    # linear layers there, [out, in]
    "decode_head.patch_proj.weight": "decoder.proj_patch",
    "decode_head.classes_proj.weight": "decoder.proj_classes",
}
# modules with a weight and a bias
_MODULES = {
    "backbone.patch_embed.projection": "encoder.patch_embed.proj",
    "backbone.ln1": "encoder.norm",
    "decode_head.dec_proj": "decoder.proj_dec",
    "decode_head.decoder_norm": "decoder.decoder_norm",
    "decode_head.mask_norm": "decoder.mask_norm",
    "decode_head.conv_seg": "decoder.head",
}
_IN_BLOCK = {
    "ln1": "norm1",
    "attn.attn.in_proj": "attn.qkv",
    "attn.attn.out_proj": "attn.proj",
    "ln2": "norm2",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
_BLOCK = re.compile(r"(backbone|decode_head)\.layers\.(\d+)\.(.+)")
_PARTS = {"backbone": "encoder", "decode_head": "decoder"}
_AUXILIARY = "auxiliary_head."  # of training alone


def is_mmseg(data: object) -> bool:
    """Whether what a pickle holds is a checkpoint of mmsegmentation's, of a Segmenter or not."""
    keys = [key for key in _state_of(data) if isinstance(key, str)]
    return all(any(key.startswith(f"{part}.") for key in keys) for part in _PARTS)


def load_mmseg(
    path: Path, data: Mapping[str, Any], report: Callable[[Fidelity], None] | None = None, names: Classes | None = None
) -> Segmenter:
    """The Segmenter in a checkpoint of mmsegmentation's: a VisionTransformer with a mask transformer or a linear layer.

    Its logits are mmsegmentation's for images of whole patches; those of others it stretches over the padding too,
    which is cut off here. data: what `segmenter.pickles.load_plain` gave. report: called with what became of every
    tensor. names: class names and colours, those of the file where None, anonymous where it has none.
    Raises CheckpointError for another network, naming what there is of it.
    """
    meta = data.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    tensors, origins, left_out = _renamed(path, _state_of(data))
    settings = read_settings(path, meta)
    config = _config_of(path, tensors, meta, settings, names)
    advice = "download it again"
    fidelity = replace(account(outline(config, tensors, path, advice), origins, left_out), notes=settings.notes)
    if report is not None:
        report(fidelity)
    fidelity.require_whole(path)
    return load_network(config, tensors, path, advice)


def _state_of(data: object) -> Mapping[Any, Any]:
    state = data.get("state_dict", data) if isinstance(data, Mapping) else {}
    return state if isinstance(state, Mapping) else {}


def _renamed(path: Path, state: Mapping[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Origin], dict[str, Shape]]:
    """Tensors under this project's names, where each came from, and what was left out.

    Raises CheckpointError for tensors that a Segmenter does not have.
    """
    tensors: dict[str, Tensor] = {}
    origins: dict[str, Origin] = {}
    left_out: dict[str, Shape] = {}
    unknown = []
    masks = "decode_head.cls_emb" in state
    for key, value in state.items():
        name = _our_name(key) if isinstance(key, str) and isinstance(value, Tensor) else ""
        if name.startswith("decoder.head.") and masks:
            left_out[key] = tuple(value.shape)  # early mask transformers kept their base class's layer, for nothing
        elif name:
            ours = _rearranged(name, value)
            tensors[name] = ours.float()
            origins[name] = Origin(key, tuple(value.shape), AS_IT_IS if ours is value else REARRANGED)
        elif str(key).startswith(_AUXILIARY) and isinstance(value, Tensor):
            left_out[key] = tuple(value.shape)
        else:
            unknown.append(str(key))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise CheckpointError(
            f"{path}: {', '.join(unknown[:3])}{more}: no part of a Segmenter of mmsegmentation's; use {SEGMENTER}"
        )
    return tensors, origins, left_out


def _our_name(key: str) -> str:
    """This project's name, empty where a Segmenter has no such tensor."""
    if key in _PARAMETERS:
        return _PARAMETERS[key]
    module, _, kind = key.replace(".in_proj_", ".in_proj.").rpartition(".")
    if kind not in ("weight", "bias"):
        return ""
    if block := _BLOCK.fullmatch(module):
        part, index, within = block.groups()
        return f"{_PARTS[part]}.blocks.{index}.{_IN_BLOCK[within]}.{kind}" if within in _IN_BLOCK else ""
    return f"{_MODULES[module]}.{kind}" if module in _MODULES else ""


def _rearranged(name: str, value: Tensor) -> Tensor:
    if name in ("decoder.proj_patch", "decoder.proj_classes") and value.ndim == 2:
        return value.t().contiguous()
    # a convolution of one pixel
    return value[..., 0, 0] if name == "decoder.head.weight" and value.shape[2:] == (1, 1) else value


def _config_of(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], settings: Settings, names: Classes | None
) -> SegmenterConfig:
    """The configuration that tensors are of."""
    masks = "decoder.cls_emb" in tensors
    try:
        width, patch = (tensors["encoder.patch_embed.proj.weight"].shape[axis] for axis in (0, -1))
        encoder = EncoderConfig(
            patch_size=patch,
            image_size=_image_size(path, tensors["encoder.pos_embed"].shape[1] - 1, patch, settings.image_size),
            width=width,
            depth=_depth(tensors, "encoder"),
            heads=settings.heads or max(width // HEAD_WIDTH, 1),
            mlp_width=tensors["encoder.blocks.0.mlp.fc1.weight"].shape[0],
            drop_path=settings.drop_path,
            norm_eps=settings.norm_eps,
            position_resize=settings.position_resize,
        )
        if masks:
            inner, count = tensors["decoder.proj_dec.weight"].shape[0], tensors["decoder.cls_emb"].shape[1]
            decoder = DecoderConfig(
                width=inner,
                depth=_depth(tensors, "decoder"),
                heads=settings.decoder_heads or max(inner // HEAD_WIDTH, 1),
                mlp_width=tensors["decoder.blocks.0.mlp.fc1.weight"].shape[0],
                dropout=0.0,
                drop_path=settings.decoder_drop_path,
                norm_eps=settings.decoder_norm_eps,
            )
        else:
            count = tensors["decoder.head.weight"].shape[0]
            decoder = DecoderConfig(kind="linear", width=width, heads=encoder.heads, mlp_width=4 * width)
        classes, palette = names or read_classes(meta) or classes_of("", count)
        if len(classes) != count:
            raise CheckpointError(
                f"{path}: its decoder has {count} classes, and there are {len(classes)} class names; pass --dataset,"
                f" one of {count} classes"
            )
        return SegmenterConfig(encoder, decoder, classes, palette, settings.preprocess, path.stem)
    except (KeyError, IndexError, ZeroDivisionError, ConfigError) as error:
        lacking = f"{error.args[0]} is not in it" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: not a whole Segmenter of mmsegmentation's ({lacking}); use a checkpoint of such a network"
        ) from error


def _depth(tensors: Mapping[str, Tensor], part: str) -> int:
    found = (re.match(rf"{part}\.blocks\.(\d+)\.", name) for name in tensors)
    return len({match[1] for match in found if match})


def _image_size(path: Path, patches: int, patch: int, told: tuple[int, int] | None) -> tuple[int, int]:
    """Training size in whole patches: as told, else that of a square grid of so many patches."""
    side = math.isqrt(max(patches, 0))
    h, w = (side, side) if told is None else (told[0] // patch, told[1] // patch)
    if h * w != patches:
        wanted = "a square grid" if told is None else f"those of images of {told[0]}x{told[1]}"
        raise CheckpointError(f"{path}: {patches} position embeddings: wanted {wanted}; use another checkpoint")
    return h * patch, w * patch
