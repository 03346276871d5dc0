"""Back to the official format: `python -m segmenter.export_official CHECKPOINT --out FOLDER` writes what it reads."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
import yaml
from torch import Tensor

from segmenter.checkpoint import OFFICIAL_NAME, VARIANT_NAME, load_model, require_new_checkpoint
from segmenter.cli import run
from segmenter.config import HALF, HEAD_WIDTH, IMAGENET, SegmenterConfig
from segmenter.datasets import DATASETS, classes_of
from segmenter.errors import ConfigError
from segmenter.files import atomic_paths
from segmenter.model import Segmenter
from segmenter.official import HEADS, NAMES
from segmenter.option import require
from segmenter.pickles import read_pickle

_NORMALIZATIONS = {HALF: "vit", IMAGENET: "deit"}
_IMAGENET_CLASSES = 1000  # of the classification head that the official network always has and never uses
_NORM_EPS = 1e-5


def official_variant(
    config: SegmenterConfig, *, window: int | None = None, stride: int | None = None, dataset: str | None = None
) -> dict[str, Any]:
    """A `variant.yml` as values: what the official code reads to build the network and to feed it.

    window, stride: of the sliding window in pixels, default the shorter side of the training image. dataset: its name,
    default the one whose classes these are. Classes of no such dataset are noted in a part of their own.
    Raises ConfigError naming all that the official network does not have.
    """
    encoder, decoder = config.encoder, config.decoder
    width, mask = encoder.width, decoder.kind == "mask"
    held = [
        (encoder.registers == 0, f"{encoder.registers} register tokens"),
        (encoder.positions == "learnt", f"{encoder.positions} positions (wanted learnt)"),
        (encoder.norm_eps == _NORM_EPS, f"LayerNorm eps {encoder.norm_eps:g} (wanted {_NORM_EPS:g})"),
        (encoder.position_resize == "bilinear", f"positions resized {encoder.position_resize} (wanted bilinear)"),
        (encoder.mlp_width == 4 * width, f"feed-forwards of {encoder.mlp_width} (wanted {4 * width})"),
        (
            not mask or decoder.norm_eps == _NORM_EPS,
            f"decoder LayerNorm eps {decoder.norm_eps:g} (wanted {_NORM_EPS:g})",
        ),
        (not mask or decoder.width == width, f"a decoder of width {decoder.width} (wanted {width})"),
        (
            not mask or decoder.mlp_width == 4 * width,
            f"decoder feed-forwards of {decoder.mlp_width} (wanted {4 * width})",
        ),
        (
            not mask or decoder.heads == width // HEAD_WIDTH,
            f"{decoder.heads} decoder heads (wanted {width // HEAD_WIDTH})",
        ),
        (config.preprocess in _NORMALIZATIONS, f"normalisation by {config.preprocess.mean}, {config.preprocess.std}"),
    ]
    others = [part for holds, part in held if not holds]
    if others:
        raise ConfigError(f"{config.name}: the official network cannot have {'; '.join(others)}; keep our format")
    side = min(encoder.image_size)
    kinds: dict[str, Any] = {"name": "linear"}
    if mask:
        kinds = {"drop_path_rate": decoder.drop_path, "dropout": decoder.dropout, "n_layers": decoder.depth}
        kinds["name"] = "mask_transformer"
    normalization = _NORMALIZATIONS[config.preprocess]
    dataset = dataset or _dataset_of(config)
    own = [[name, *colour] for name, colour in zip(config.classes, config.palette, strict=True)]
    known = classes_of(dataset, config.num_classes) == (config.classes, config.palette)
    return {
        "dataset_kwargs": {
            "crop_size": side,
            "dataset": dataset,
            "image_size": side,
            "normalization": normalization,
        },
        "inference_kwargs": {"im_size": side, "window_size": window or side, "window_stride": stride or window or side},
        "net_kwargs": {
            "backbone": config.name,
            "d_model": width,
            "decoder": kinds,
            "distilled": encoder.distilled,
            "drop_path_rate": encoder.drop_path,
            "dropout": encoder.dropout,
            "image_size": list(encoder.image_size),
            "n_cls": config.num_classes,
            "n_heads": encoder.heads,
            "n_layers": encoder.depth,
            "normalization": normalization,
            "patch_size": encoder.patch_size,
        },
    } | ({} if known else {NAMES: own})


def official_tensors(model: Segmenter, heads: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The network's tensors under the official names, with the ImageNet heads that loading them there asks for.

    heads: those heads, zeros where left out, for nothing reads them. LayerScale is folded into the layers before it.
    """
    if model.config.encoder.layer_scale:
        model.fold_layer_scale()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    width = model.config.encoder.width
    for name in ("head", "head_dist") if model.config.encoder.distilled else ("head",):
        for kind, shape in (("weight", (_IMAGENET_CLASSES, width)), ("bias", (_IMAGENET_CLASSES,))):
            key = f"encoder.{name}.{kind}"
            state[key] = torch.zeros(shape) if heads is None else _head(heads, key, shape)
    return state


def _head(heads: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    found = tuple(heads[key].shape) if key in heads else "none"
    if found != shape:
        raise ConfigError(f"--heads-of: {key} is {found}, wanted {shape}; name a checkpoint of the same backbone")
    return heads[key]


def _dataset_of(config: SegmenterConfig) -> str:
    for name in DATASETS:
        try:
            if classes_of(name)[0] == config.classes:
                return name
        except ConfigError:  # a dataset whose folder alone knows its classes
            continue
    return "custom"


@dataclass(frozen=True)
class Options:
    """Write a checkpoint as the official implementation reads it: checkpoint.pth beside variant.yml."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder."""
    out: Path
    """Folder to write checkpoint.pth and variant.yml to."""
    heads_of: Path | None = None
    """Official checkpoint.pth to take the unused ImageNet heads from, such as the one ours came from; zeros else."""
    window: int | None = None
    """Side in pixels of the sliding window that variant.yml notes; default the shorter side of the training image."""
    stride: int | None = None
    """Pixels from one window to the next, as noted there; default the window's side."""
    dataset: str | None = None
    """The dataset that is noted there; default the one whose classes these are, else custom."""

    def __post_init__(self) -> None:
        for option, value in (("--window", self.window), ("--stride", self.stride)):
            require(value is None or value >= 1, option, value, "at least 1 pixel")


def export_official(options: Options) -> int:
    for source in (options.checkpoint, options.heads_of):
        require_new_checkpoint(options.out, source)
    model = load_model(options.checkpoint)
    variant = official_variant(model.config, window=options.window, stride=options.stride, dataset=options.dataset)
    heads = None if options.heads_of is None else read_pickle(options.heads_of)
    folded = model.config.encoder.layer_scale
    tensors = official_tensors(model, heads)
    with atomic_paths(options.out / OFFICIAL_NAME, options.out / VARIANT_NAME) as (weights, values):
        torch.save({"model": tensors, "n_cls": model.config.num_classes}, weights)
        values.write_text(yaml.safe_dump(variant), encoding="utf-8")
    unread = sum(bool(HEADS.match(name)) for name in tensors)
    print(
        f"{options.out / OFFICIAL_NAME}: {len(tensors) - unread} tensors of the network, {unread} of ImageNet heads"
        f" ({'zeros' if heads is None else f'from {options.heads_of}'})"
        f"{', LayerScale folded' if folded else ''}"
    )
    windows = variant["inference_kwargs"]
    print(
        f"{options.out / VARIANT_NAME}: sliding windows of {windows['window_size']} pixels, stride"
        f" {windows['window_stride']}; --window and --stride note others"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(export_official, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
