"""Importers: the official implementation's checkpoints, and ViT backbones under timm's or DINOv2's key names.

`python -m segmenter.pretrained SOURCE --out FOLDER` writes a checkpoint folder from either.
"""

import math
import pickle
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
import tyro
import yaml
from torch import Tensor

from segmenter.checkpoint import (
    CONFIG_NAME,
    OFFICIAL_NAME,
    VARIANT_NAME,
    load_weights,
    read_tensors,
    require_new_checkpoint,
    save_model,
)
from segmenter.cli import run
from segmenter.config import NORMALIZATIONS, DecoderConfig, EncoderConfig, SegmenterConfig
from segmenter.datasets import DATASETS, classes_of, layout_of
from segmenter.errors import CheckpointError, ConfigError
from segmenter.model import Segmenter
from segmenter.vit import resize_position

# In official checkpoints, but no part of segmentation: the ImageNet classification heads of the backbone.
_HEADS = re.compile(r"encoder\.(head|head_dist|pre_logits)\.")
_HEAD_WIDTH = 64


class _VariantLoader(yaml.SafeLoader):
    """YAML without code: SafeLoader, and `!!python/tuple`, which official variant files contain."""


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def load_official(path: Path, ops: ModuleType | None = None) -> Segmenter:
    """Open an official `checkpoint.pth` with the `variant.yml` beside it; the logits are the official code's.

    Neither file may run code: the checkpoint is read with `weights_only=True`, the YAML with a safe loader.
    Raises CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    net = _read_variant(path.with_name(VARIANT_NAME))
    config = official_config(net, path.with_name(VARIANT_NAME))
    tensors = {name: tensor for name, tensor in _read_pickle(path).items() if not _HEADS.match(name)}
    model = Segmenter(config, ops)
    load_weights(model, tensors, path)
    return model


def official_config(variant: dict[str, Any], source: Path) -> SegmenterConfig:
    """Our configuration of a parsed `variant.yml`.

    Raises CheckpointError for a missing entry or a decoder other than linear and mask_transformer.
    """
    try:
        net = variant["net_kwargs"]
        decoder = net["decoder"]
        side = net["image_size"]
        width, patch = net["d_model"], net["patch_size"]
        name = decoder["name"]
        if name not in ("linear", "mask_transformer"):
            raise CheckpointError(f"{source}: decoder {name!r}: only 'linear' and 'mask_transformer' are supported")
        encoder = EncoderConfig(
            patch_size=patch,
            image_size=(side, side) if isinstance(side, int) else (side[0], side[1]),
            width=width,
            depth=net["n_layers"],
            heads=net["n_heads"],
            mlp_width=4 * width,
            distilled=bool(net.get("distilled", False)),
            dropout=net.get("dropout", 0.0),
            drop_path=net.get("drop_path_rate", 0.0),
        )
        normalization = net.get("normalization") or variant.get("dataset_kwargs", {}).get("normalization", "vit")
        if normalization not in NORMALIZATIONS:
            raise CheckpointError(f"{source}: normalization {normalization!r}: wanted one of {sorted(NORMALIZATIONS)}")
        classes, palette = classes_of(variant.get("dataset_kwargs", {}).get("dataset", ""), net["n_cls"])
        return SegmenterConfig(
            encoder=encoder,
            decoder=DecoderConfig(
                kind="linear" if name == "linear" else "mask",
                width=width,
                depth=decoder.get("n_layers", 2),
                heads=max(width // 64, 1),
                mlp_width=4 * width,
                dropout=decoder.get("dropout", 0.1),
                drop_path=decoder.get("drop_path_rate", 0.0),
            ),
            classes=classes,
            palette=palette,
            preprocess=NORMALIZATIONS[normalization],
            name=str(net.get("backbone", "custom")),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ConfigError) as error:
        raise CheckpointError(
            f"{source}: not an official variant file: {type(error).__name__}: {error};"
            " use the variant.yml that training wrote beside the checkpoint"
        ) from error


def _read_variant(path: Path) -> dict[str, Any]:
    try:
        # a SafeLoader subclass whose one extra constructor makes tuples
        values = yaml.load(path.read_text(), Loader=_VariantLoader)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; an official checkpoint needs its variant.yml beside it"
        ) from error
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, RecursionError) as error:
        # the YAML library lets values that are none of their kind (a date of month 45) through as Python's own errors
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: not readable as plain YAML ({reason}); tags that run code are refused"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: wanted a mapping with 'net_kwargs', got {type(values).__name__}")
    return values


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The `model` tensors of a PyTorch checkpoint, without running anything in it."""
    try:
        with warnings.catch_warnings():
            # torch talks of reporting the file to its makers; what follows below is for the user of this one
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is no checkpoint, and was not loaded (it could run code);"
            " convert it to safetensors where you trust it"
        ) from error
    except Exception as error:  # a damaged pickle can fail anywhere inside the unpickler
        raise CheckpointError(f"{path}: truncated or not a PyTorch checkpoint ({error}); copy it again") from error
    tensors = data.get("model", data) if isinstance(data, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path}: wanted a dictionary of tensors under 'model'; this is another kind of file")
    return tensors


def load_backbone(path: Path, blocks: int | None = None) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """ViT weights under timm's or DINOv2's key names from a safetensors file, and the encoder they fit.

    blocks: keep only the first so many; the final LayerNorm then starts as the identity. The configuration is read off
    the shapes: 64 channels a head, square training grid, LayerNorm eps 1e-6; positions resized as DINOv2 does where the
    file has LayerScale, else bilinear.
    Raises CheckpointError for keys or shapes that are no such ViT.
    """
    tensors = {key.removeprefix("backbone."): value.float() for key, value in read_tensors(path).items()}
    if "register_tokens" in tensors:
        raise CheckpointError(f"{path}: register tokens are not supported; use the weights trained without them")
    try:
        projection, position = tensors["patch_embed.proj.weight"], tensors["pos_embed"]
        width, patch = projection.shape[0], projection.shape[-1]
        depth = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        positions = position.shape[1]
    except (KeyError, ValueError, IndexError) as error:
        lacking = f"{error.args[0]} is not in it" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: not a ViT under timm's or DINOv2's key names ({lacking}); use weights of such a ViT, or convert"
            " their names"
        ) from error
    distilled, scaled = "dist_token" in tensors, "blocks.0.ls1.gamma" in tensors
    count = positions - 1 - distilled
    side = math.isqrt(max(count, 0))
    if count < 1 or side * side != count:
        raise CheckpointError(f"{path}: {count} position embeddings are no square grid; resize them first")
    if blocks is not None and not 1 <= blocks <= depth:
        raise CheckpointError(f"{path}: asked for the first {blocks} blocks of {depth}; wanted 1 to {depth}")
    if width % _HEAD_WIDTH:
        raise CheckpointError(
            f"{path}: width {width}: wanted a multiple of {_HEAD_WIDTH}, the channels of a head in timm's and DINOv2's"
            " ViTs; use weights of another ViT"
        )
    try:
        config = EncoderConfig(
            patch_size=patch,
            image_size=(side * patch, side * patch),
            width=width,
            depth=blocks or depth,
            heads=width // _HEAD_WIDTH,
            mlp_width=hidden,
            distilled=distilled,
            layer_scale=scaled,
            norm_eps=1e-6,
            position_resize="dinov2" if scaled else "bilinear",
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; use weights of another ViT") from error
    if config.depth < depth:
        tensors["norm.weight"], tensors["norm.bias"] = torch.ones(width), torch.zeros(width)
    wanted = re.compile(r"(cls_token|dist_token|pos_embed|patch_embed\.proj|norm\.|blocks\.(\d+)\.)")
    kept = {}
    for key, value in tensors.items():
        match = wanted.match(key)
        if match and (match[2] is None or int(match[2]) < config.depth):
            kept[f"encoder.{key}"] = value
    return config, kept


def from_backbone(
    path: Path,
    classes: tuple[str, ...],
    palette: tuple[tuple[int, int, int], ...] = (),
    *,
    decoder: Literal["linear", "mask"] = "mask",
    blocks: int | None = None,
    image_size: tuple[int, int] | None = None,
    normalization: str = "imagenet",
) -> Segmenter:
    """A Segmenter whose encoder is a pretrained ViT and whose decoder is fresh.

    image_size: (H, W) to resize the position embeddings to, rounded up to whole patches, as their source resizes them.
    Raises CheckpointError as `load_backbone` does.
    """
    encoder, tensors = load_backbone(path, blocks)
    if image_size is not None:
        P = encoder.patch_size
        resized = replace(encoder, image_size=(-(-image_size[0] // P) * P, -(-image_size[1] // P) * P))
        if resized.grid != encoder.grid:
            tensors["encoder.pos_embed"] = resize_position(
                tensors["encoder.pos_embed"], encoder.grid, resized.grid, encoder.extra_tokens, encoder.position_resize
            )
            if resized.position_resize == "dinov2":
                # its offset belongs to its own grid; from this one on it would shift the same positions once more
                resized = replace(resized, position_resize="bicubic")
        encoder = resized
    config = SegmenterConfig(
        encoder=encoder,
        decoder=DecoderConfig(
            kind=decoder,
            width=encoder.width,
            heads=encoder.heads,
            mlp_width=4 * encoder.width,
            norm_eps=encoder.norm_eps,
        ),
        classes=classes,
        palette=palette,
        preprocess=NORMALIZATIONS[normalization],
        name=f"{path.stem}, {encoder.depth} blocks, {decoder} decoder",
    )
    model = Segmenter(config)
    fresh = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("decoder.")}
    load_weights(model, tensors | fresh, path)
    return model


@dataclass(frozen=True)
class Options:
    """Make a checkpoint folder from an official checkpoint.pth (with variant.yml) or from ViT weights (safetensors)."""

    source: Annotated[Path, tyro.conf.Positional]
    """An official checkpoint.pth or its folder, or a .safetensors file under timm's or DINOv2's key names."""
    out: Path
    """Folder to write config.json and model.safetensors to."""
    dataset: str | None = None
    """Dataset whose classes the fresh decoder gets (ViT weights only)."""
    data: Path | None = None
    """The dataset's folder; only `folder` needs it, for its list of classes."""
    num_classes: int | None = None
    """Number of anonymous classes instead of a dataset's (ViT weights only)."""
    decoder: Literal["linear", "mask"] = "mask"
    """Fresh decoder (ViT weights only)."""
    blocks: int | None = None
    """Keep only the first so many transformer blocks (ViT weights only)."""
    height: int | None = None
    """Training height in pixels the position embeddings are resized for (ViT weights only)."""
    width: int | None = None
    """Training width in pixels."""
    normalization: Literal["imagenet", "vit"] = "imagenet"
    """Input normalisation the ViT weights were trained with: ImageNet statistics, or 0.5 and 0.5."""
    seed: int = 0
    """Seed of the fresh decoder."""


def import_weights(options: Options) -> int:
    source = options.source / OFFICIAL_NAME if options.source.is_dir() else options.source
    if options.source.is_dir() and not source.is_file():
        raise CheckpointError(
            f"{options.source}: holds no {OFFICIAL_NAME}; name an official checkpoint, its folder, or a .safetensors"
            f" file (a folder with {CONFIG_NAME} is a checkpoint already)"
        )
    require_new_checkpoint(options.out)
    if source.suffix == ".pth":
        model = load_official(source)
    else:
        if (options.dataset is None) == (options.num_classes is None):
            raise ConfigError("ViT weights have no classes of their own; pass one of --dataset and --num-classes")
        if (options.height is None) != (options.width is None):
            raise ConfigError("pass --height and --width together, or neither")
        if options.dataset is not None and options.dataset not in DATASETS:
            raise ConfigError(f"dataset {options.dataset!r}: wanted one of {', '.join(DATASETS)}")
        if options.data is not None and options.dataset not in (None, "shapes"):
            layout = layout_of(options.dataset, options.data, "train")
            classes, palette = layout.classes, layout.palette
        else:
            classes, palette = classes_of(options.dataset or "", options.num_classes)
        torch.manual_seed(options.seed)
        model = from_backbone(
            options.source,
            classes,
            palette,
            decoder=options.decoder,
            blocks=options.blocks,
            image_size=(options.height, options.width) if options.height and options.width else None,
            normalization=options.normalization,
        )
    save_model(model, options.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{options.out}: {model.config.name}, {model.config.num_classes} classes, {parameters / 1e6:.1f} M parameters"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(import_weights, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
