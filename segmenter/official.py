"""The official implementation's format: `checkpoint.pth` beside `variant.yml`, read without running either."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from segmenter.checkpoint import VARIANT_NAME, load_network, outline
from segmenter.config import HEAD_WIDTH, NORMALIZATIONS, DecoderConfig, EncoderConfig, SegmenterConfig
from segmenter.datasets import classes_of
from segmenter.errors import CheckpointError, ConfigError
from segmenter.fidelity import Fidelity, Origin, account
from segmenter.model import Segmenter
from segmenter.pickles import read_pickle

# In official checkpoints, but no part of segmentation: the ImageNet classification heads of the backbone.
HEADS = re.compile(r"encoder\.(head|head_dist|pre_logits)\.")

# a part of variant.yml that the official code never reads, and has no other place for: [name, red, green, blue] a class
NAMES = "class_names"
Classes = tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]


class _VariantLoader(yaml.SafeLoader):
    """YAML without code: SafeLoader, and `!!python/tuple`, which official variant files contain."""


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def load_official(
    path: Path,
    ops: ModuleType | None = None,
    report: Callable[[Fidelity], None] | None = None,
    names: Classes | None = None,
) -> Segmenter:
    """Open an official `checkpoint.pth` with the `variant.yml` beside it; the logits are the official code's.

    Neither file may run code: the checkpoint is read with `weights_only=True`, the YAML with a safe loader.
    report: called with what became of every tensor. names: class names and colours, those of `variant.yml` when None.
    Raises CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    variant_path = path.with_name(VARIANT_NAME)
    config = official_config(read_variant(variant_path), variant_path, names)
    whole = read_pickle(path)
    tensors = {name: tensor for name, tensor in whole.items() if not HEADS.match(name)}
    advice = f"use the {variant_path.name} they were trained with, or correct {variant_path}"
    if report is not None:
        origins = {name: Origin(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
        left_out = {name: tuple(tensor.shape) for name, tensor in whole.items() if name not in tensors}
        report(account(outline(config, tensors, path, advice), origins, left_out))
    return load_network(config, tensors, path, advice, ops)


def official_config(variant: dict[str, Any], source: Path, names: Classes | None = None) -> SegmenterConfig:
    """Our configuration of a parsed `variant.yml`; names: class names and colours, those it tells when None.

    Raises CheckpointError for a missing entry, a decoder other than linear and mask_transformer, or names that are not
    as many as its classes.
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
        classes, palette = names or _classes(variant)
        if len(classes) != net["n_cls"]:
            raise CheckpointError(
                f"{source}: n_cls is {net['n_cls']}, and {len(classes)} class names were given; correct it, or pass a"
                " dataset of as many classes"
            )
        return SegmenterConfig(
            encoder=encoder,
            decoder=DecoderConfig(
                kind="linear" if name == "linear" else "mask",
                width=width,
                depth=decoder.get("n_layers", 2),
                heads=max(width // HEAD_WIDTH, 1),
                mlp_width=4 * width,
                dropout=decoder.get("dropout", 0.1),
                drop_path=decoder.get("drop_path_rate", 0.0),
            ),
            classes=classes,
            palette=palette,
            preprocess=NORMALIZATIONS[normalization],
            name=str(net.get("backbone", "custom")),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{source}: not an official variant file: {type(error).__name__}: {error};"
            " use the variant.yml that training wrote beside the checkpoint"
        ) from error


def official_windows(variant: dict[str, Any]) -> tuple[int, int] | None:
    """Side and stride in pixels of the sliding windows that a `variant.yml` notes; None where it notes none."""
    match variant.get("inference_kwargs"):
        case {"window_size": int(window), "window_stride": int(stride)}:
            return window, stride
    return None


def _classes(variant: dict[str, Any]) -> Classes:
    """Class names and colours: those `segmenter export-official` left, else those of the dataset."""
    if NAMES in variant:
        rows = [(str(name), (int(red), int(green), int(blue))) for name, red, green, blue in variant[NAMES]]
        return tuple(name for name, _ in rows), tuple(colour for _, colour in rows)
    return classes_of(variant.get("dataset_kwargs", {}).get("dataset", ""), variant["net_kwargs"]["n_cls"])


def read_variant(path: Path) -> dict[str, Any]:
    try:
        # a SafeLoader subclass whose one extra constructor makes tuples
        values = yaml.load(path.read_text(), Loader=_VariantLoader)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; an official checkpoint needs its variant.yml beside it (`segmenter"
            " pretrained` imports mmsegmentation's, and ViT weights)"
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
