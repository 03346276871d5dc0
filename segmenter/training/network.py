"""The network a run starts from: a variant of the paper, a checkpoint, or a small one made to measure."""

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from segmenter.checkpoint import load_model, load_weights
from segmenter.config import DecoderConfig, EncoderConfig, SegmenterConfig, variant, whole_patches
from segmenter.datasets import SegmentationDataset
from segmenter.evaluation import different_class
from segmenter.model import Segmenter
from segmenter.option import require
from segmenter.training.options import NetworkOptions
from segmenter.vit import for_images, widen_projection

PROJECTION = "encoder.patch_embed.proj.weight"
POSITIONS = "encoder.pos_embed"
_PATCHES_A_SIDE = 16  # of the image size of a network of one's own


def make_network(
    options: NetworkOptions,
    dataset: SegmentationDataset,
    crop: tuple[int, int] | None,
    seed: int,
    ops: ModuleType | None = None,
) -> tuple[Segmenter, str]:
    """The network to train on a dataset, and a line about where it comes from.

    crop: (height, width) position embeddings are made for, rounded up to whole patches, those of a checkpoint resized;
    the variant's or the checkpoint's own when None. A checkpoint keeps its decoder where it tells the same classes
    apart, or as many anonymous ones.
    Raises ConfigError for an unknown variant or impossible sizes, CheckpointError for a checkpoint that cannot be read.
    """
    torch.manual_seed(seed)
    if options.init is None:
        config = _fresh_config(options, dataset, crop)
        return Segmenter(config, ops), f"{config.name}, from random weights"
    source = load_model(options.init)
    wide, tensors = widened(source, dataset.channels)
    if crop is not None:
        encoder, position = for_images(wide.encoder, tensors.get(POSITIONS), crop)
        wide = replace(wide, encoder=encoder)
        if position is not None:
            tensors[POSITIONS] = position
    config = _with_chances(replace(wide, classes=dataset.classes, palette=dataset.palette), options)
    model = Segmenter(config, ops)
    line = f"{config.name}, from {options.init}"
    before, now = source.config.encoder.image_size, config.encoder.image_size
    if now != before:
        line += f"; for images of {now[0]}x{now[1]}, the crop's, where it was {before[0]}x{before[1]}"
    if dataset.channels > source.config.encoder.channels:
        fresh = range(source.config.encoder.channels + 1, dataset.channels + 1)
        line += f"; channel {', '.join(map(str, fresh))} begins at weight 0"
    other = _other_classes(source.config.classes, config.classes)
    if other:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
        tensors |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("decoder.")}
        line += f"; fresh decoder ({other})"
    load_weights(model, tensors, options.init)
    return model, line


def widened(source: Segmenter, channels: int) -> tuple[SegmenterConfig, dict[str, Tensor]]:
    """Configuration and weights of a network for images of so many channels, which begins as the one it was.

    Raises ConfigError for fewer than it has.
    """
    config, tensors = source.config.with_channels(channels), source.state_dict()
    tensors[PROJECTION] = widen_projection(tensors[PROJECTION], channels)
    return config, tensors


def _fresh_config(
    options: NetworkOptions, dataset: SegmentationDataset, crop: tuple[int, int] | None
) -> SegmenterConfig:
    if options.variant is not None:
        config = variant(options.variant, dataset.classes)
        if crop is not None:
            size = whole_patches(crop, config.encoder.patch_size)
            config = replace(config, encoder=replace(config.encoder, image_size=size))
        return _with_chances(replace(config, palette=dataset.palette), options).with_channels(dataset.channels)
    P, C = options.patch_size, options.width
    config = SegmenterConfig(
        encoder=EncoderConfig(
            patch_size=P,
            image_size=whole_patches(crop or (_PATCHES_A_SIDE * P, _PATCHES_A_SIDE * P), P),
            width=C,
            depth=options.depth,
            heads=options.heads,
            mlp_width=4 * C,
            drop_path=0.0,
        ),
        decoder=DecoderConfig(
            kind=options.decoder,
            width=C,
            depth=options.decoder_depth,
            heads=options.heads,
            mlp_width=4 * C,
            dropout=0.0,
        ),
        classes=dataset.classes,
        palette=dataset.palette,
        name=f"{options.decoder} patch {P}, width {C}, depth {options.depth}",
    )
    return _with_chances(config, options).with_channels(dataset.channels)


def _other_classes(there: tuple[str, ...], here: tuple[str, ...]) -> str:
    """How the classes of a checkpoint and of a dataset differ, empty when they do not."""
    if len(there) != len(here):
        return f"{len(there)} classes there, {len(here)} here"
    index = different_class(there, here)
    return "" if index is None else f"class {index} is {there[index]!r} there, {here[index]!r} here"


def _with_chances(config: SegmenterConfig, options: NetworkOptions) -> SegmenterConfig:
    """The configuration with dropout and stochastic depth as asked for."""
    for name, value in (("dropout", options.dropout), ("drop_path", options.drop_path)):
        holds = value is None or 0 <= value < 1
        require(holds, f"--{name.replace('_', '-')}", value, "a share from 0 to below 1")
    encoder, decoder = config.encoder, config.decoder
    if options.dropout is not None:
        decoder = replace(decoder, dropout=options.dropout)
    if options.drop_path is not None:
        encoder = replace(encoder, drop_path=options.drop_path)
    return replace(config, encoder=encoder, decoder=decoder)
