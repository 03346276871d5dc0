"""Importers: the official code's and mmsegmentation's checkpoints, and ViTs under the names their publishers give them.

`python -m segmenter.pretrained SOURCE --out FOLDER` writes a checkpoint folder from any, and says what became of every
tensor.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from torch import nn

from segmenter.backbone import Backbone, load_backbone
from segmenter.checkpoint import (
    CONFIG_NAME,
    OFFICIAL_NAME,
    VARIANT_NAME,
    load_weights,
    require_new_checkpoint,
    save_model,
)
from segmenter.cli import run
from segmenter.config import NORMALIZATIONS, DecoderConfig, SegmenterConfig, variant
from segmenter.datasets import classes_of, layout_of, require_known
from segmenter.datasets.option import DATASET
from segmenter.decoder import MaskDecoder
from segmenter.errors import CheckpointError, ConfigError, SegmenterError
from segmenter.fidelity import Fidelity, account, fidelity_table
from segmenter.mmseg import is_mmseg, load_mmseg
from segmenter.model import Segmenter
from segmenter.official import Classes, load_official, official_windows, read_variant
from segmenter.option import require
from segmenter.patch_resize import PatchResize
from segmenter.pickles import PICKLES, load_plain

Report = Callable[[Fidelity], None]
# what a file and a variant of the paper must agree in; the rest of the encoder is the variant's
_AGREED = ("patch_size", "width", "depth", "heads", "mlp_width", "distilled", "registers", "layer_scale", "positions")
_SATELLITE = "local_cls_norm.weight"  # among the plain ViTs that Meta publishes of DINOv3, that one alone has it


def from_backbone(
    path: Path,
    classes: tuple[str, ...],
    palette: tuple[tuple[int, int, int], ...] = (),
    *,
    variant_name: str | None = None,
    decoder: Literal["linear", "mask"] | None = None,
    blocks: int | None = None,
    image_size: tuple[int, int] | None = None,
    patch_size: int | None = None,
    patch_resize: PatchResize = "pi",
    position_resize: Literal["bilinear", "bicubic", "dinov2"] | None = None,
    normalization: Literal["imagenet", "vit", "satellite"] | None = None,
    mask_scale: float | None = None,
    report: Report | None = None,
) -> Segmenter:
    """A Segmenter whose encoder is a pretrained ViT and whose decoder is fresh.

    variant_name: a variant of the paper the network shall be, its LayerNorm eps, stochastic depth, decoder and
    normalisation too; else the network follows the file, and the decoder is `mask` where not told. image_size: (H, W)
    to train at, rounded up to whole patches, which learnt positions are resized to, by `position_resize` or as their
    source does; the variant's where left out. patch_size: patch size to change the file's to. normalization: default
    the variant's, else 0.5 for Google's files and ImageNet's for others. mask_scale: what a mask decoder multiplies its
    normalised scores by at first, in place of 1. report: called with what became of every
    tensor.
    Raises CheckpointError as `load_backbone` does, and where the file lacks a tensor; ConfigError where file and
    variant do not agree, or positions are to be resized that are rotary.
    """
    backbone = load_backbone(path)
    if position_resize is not None and backbone.encoder.positions == "rotary":
        raise ConfigError(
            f"--position-resize {position_resize}: {path} has rotary positions, which fit any size; leave it out"
        )
    if blocks is not None:
        backbone.keep_blocks(blocks)
    if patch_size is not None:
        backbone.change_patch(patch_size, patch_resize)
    if variant_name is None:
        config = _config_of(backbone, classes, palette, decoder or "mask")
    else:
        config = _config_of_variant(backbone, variant_name, classes, palette)
        image_size = image_size or config.encoder.image_size
    own_grid = backbone.encoder.grid
    if image_size is not None:
        backbone.change_image_size(image_size, position_resize)
    encoder = backbone.encoder
    if variant_name is not None:
        encoder = replace(config.encoder, image_size=encoder.image_size)
    elif position_resize is not None and (position_resize != "dinov2" or encoder.grid == own_grid):
        encoder = replace(encoder, position_resize=position_resize)
    config = replace(config, encoder=encoder)
    if normalization is not None:
        config = replace(config, preprocess=NORMALIZATIONS[normalization])
    model = Segmenter(config)
    if mask_scale is not None:
        _begin_at(model, mask_scale)
    wanted = model.state_dict()
    fidelity = account(
        wanted,
        {f"encoder.{name}": origin for name, origin in backbone.origins.items()},
        backbone.left_out,
        new=("decoder.",),
    )
    notes = []
    if encoder.norm_eps != backbone.encoder.norm_eps:
        notes.append(
            f"LayerNorm eps is {encoder.norm_eps:g} as in {config.name}, the source's {backbone.encoder.norm_eps:g}"
        )
    if normalization is None and _SATELLITE in backbone.left_out:
        notes.append(f"{_SATELLITE}: as in DINOv3's ViT-L of satellite images; of those pass --normalization satellite")
    fidelity = replace(fidelity, notes=tuple(notes))
    if report is not None:
        report(fidelity)
    fidelity.require_whole(path)
    fresh = {name: tensor for name, tensor in wanted.items() if name.startswith("decoder.")}
    load_weights(model, {f"encoder.{name}": tensor for name, tensor in backbone.tensors.items()} | fresh, path)
    return model


def _begin_at(model: Segmenter, mask_scale: float) -> None:
    if not isinstance(model.decoder, MaskDecoder):
        raise ConfigError(f"--mask-scale {mask_scale}: is for mask decoders, and this one is linear; leave it out")
    require(0.0 < mask_scale < math.inf, "--mask-scale", mask_scale, "more than 0; the official code has 1")
    nn.init.constant_(model.decoder.mask_norm.weight, mask_scale)


def _config_of(
    backbone: Backbone,
    classes: tuple[str, ...],
    palette: tuple[tuple[int, int, int], ...],
    decoder: Literal["linear", "mask"],
) -> SegmenterConfig:
    encoder = backbone.encoder
    return SegmenterConfig(
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
        preprocess=NORMALIZATIONS[backbone.normalization],
        name=f"{backbone.path.stem}, {encoder.depth} blocks, {decoder} decoder",
    )


def _config_of_variant(
    backbone: Backbone, name: str, classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> SegmenterConfig:
    """A variant's configuration. Raises ConfigError where the file's encoder is another."""
    config = replace(variant(name, classes), palette=palette)
    found, wanted = backbone.encoder, config.encoder
    others = [
        f"{field.replace('_', ' ')} {getattr(found, field)} for {getattr(wanted, field)}"
        for field in _AGREED
        if getattr(found, field) != getattr(wanted, field)
    ]
    if others:
        raise ConfigError(
            f"{backbone.path}: no encoder of {config.name}: {', '.join(others)}; use its backbone's weights, another"
            " variant, or --patch-size where only that differs"
        )
    return config


@dataclass(frozen=True)
class Options:
    """Make a checkpoint folder from an official checkpoint.pth (with variant.yml), mmsegmentation's, or ViT weights.

    A table tells what became of every tensor. Of mmsegmentation's checkpoints (OpenMMLab's; releases 0.x and 1.x) its
    Segmenters are read, of either decoder, with the class names, colours and settings noted in the file. None of those
    published was at hand when this was written: it follows mmsegmentation's code, and is tested on random weights.
    ViT weights are .safetensors or .pth files under timm's key names (AugReg, DeiT), DINOv2's or DINOv3's (Meta's,
    timm's or Hugging Face's; of its ViTs S, B and L), or Google's .npz files.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """An official checkpoint.pth or its folder, a .pth file of mmsegmentation's, or a file of ViT weights."""
    out: Path | None = None
    """Folder to write config.json and model.safetensors to; left out: only show what would become of the tensors."""
    dataset: Annotated[str | None, DATASET] = None
    """Dataset whose classes a fresh decoder is for, or that names and colours those of a whole network."""
    data: Path | None = None
    """The dataset's folder; only `folder` needs it, for its list of classes."""
    num_classes: int | None = None
    """Number of anonymous classes instead of a dataset's (this and all below: ViT weights only)."""
    variant: str | None = None
    """The variant of the paper the network shall be, such as Seg-B-Mask/16; left out: what the file is, as it is."""
    decoder: Literal["linear", "mask"] | None = None
    """Fresh decoder; default the variant's, else mask."""
    blocks: int | None = None
    """Keep only the first so many transformer blocks."""
    height: int | None = None
    """Training height in pixels, which learnt positions are resized for.
    Default the variant's, else the file's own, 512 where positions are rotary (DINOv3)."""
    width: int | None = None
    """Training width in pixels."""
    position_resize: Literal["bilinear", "bicubic", "dinov2"] | None = None
    """How learnt positions are resized.
    Default as the official Segmenter does (bilinear, .npz files too), or as DINOv2 for its weights.
    mmsegmentation, and timm after 0.4.12 for .npz files, have bicubic."""
    patch_size: int | None = None
    """Change the patch size to 8, 14, 16 or 32 pixels, the number of patches staying; height and width come after."""
    patch_resize: PatchResize = "pi"
    """How the patch kernel is resized: pi keeps its products with patches (FlexiViT), bilinear takes it as an image."""
    normalization: Literal["imagenet", "vit", "satellite"] | None = None
    """Input normalisation: ImageNet statistics, 0.5 and 0.5 (timm's AugReg weights too), or satellite images'.
    The last are for DINOv3's weights of SAT-493M, which do not tell.
    Default the variant's, else vit for .npz files and imagenet for others."""
    mask_scale: float | None = None
    """What a fresh mask decoder multiplies its normalised scores by at first, in place of the official code's 1.
    Few classes learn sooner from more, sqrt(149 / (K - 1)) for K, but scores may come too close for 16 bits: verify."""
    seed: int = 0
    """Seed of the fresh decoder."""

    def __post_init__(self) -> None:
        if self.variant is not None and self.decoder is not None:
            raise ConfigError(f"--variant {self.variant} has its own decoder; drop --decoder")
        if (self.height is None) != (self.width is None):
            raise ConfigError("pass --height and --width together, or neither")


def import_weights(options: Options) -> int:
    source = _source(options.source)
    if options.out is not None:
        require_new_checkpoint(options.out)
    console = Console()

    def report(fidelity: Fidelity) -> None:
        console.print(fidelity_table(fidelity, f"{source.name}: what became of every tensor"))
        print("; ".join(f"{count} {how}" for how, count in fidelity.counts().items()), *fidelity.notes, sep="\n")

    held = _read_mmseg(source)
    official = held is None and _is_official(source)
    if held is not None or official:
        if options.num_classes is not None:
            raise ConfigError(
                f"--num-classes {options.num_classes}: is for ViT weights, and {source} has its own; leave it out, or"
                " name them by --dataset"
            )
        names = _dataset_classes(options) if options.dataset else None
        if held is None:
            model = load_official(source, report=report, names=names)
        else:
            model = load_mmseg(source, held, report=report, names=names)
    else:
        try:
            classes, palette = _classes(options)
        except SegmenterError:
            load_backbone(source)  # a file that cannot be read is the first thing to say
            raise
        torch.manual_seed(options.seed)
        model = from_backbone(
            source,
            classes,
            palette,
            variant_name=options.variant,
            decoder=options.decoder,
            blocks=options.blocks,
            image_size=(options.height, options.width) if options.height and options.width else None,
            patch_size=options.patch_size,
            patch_resize=options.patch_resize,
            position_resize=options.position_resize,
            normalization=options.normalization,
            mask_scale=options.mask_scale,
            report=report,
        )
    if options.out is not None:
        save_model(model, options.out)
    config, parameters = model.config, sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{options.out or 'nothing written'}: {config.name}, {config.num_classes} classes,"
        f" {parameters / 1e6:.1f} M parameters, images of {config.encoder.image_size[0]}x{config.encoder.image_size[1]}"
        f" in patches of {config.encoder.patch_size}, mean {config.preprocess.mean}, std {config.preprocess.std}"
    )
    if official and (windows := official_windows(read_variant(source.with_name(VARIANT_NAME)))):
        window, stride = windows
        print(
            f"{VARIANT_NAME} notes sliding windows of {window} pixels, stride {stride}, which a checkpoint has no place"
            f" for: pass --window {window} --stride {stride} to predict, evaluate and export-official"
        )
    return 0


def _source(path: Path) -> Path:
    """The file to import. Raises CheckpointError where there is none, or a folder without an official checkpoint."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file; check the path")
    if not (path / OFFICIAL_NAME).is_file():
        raise CheckpointError(
            f"{path}: holds no {OFFICIAL_NAME}; name an official checkpoint, its folder, or a file of ViT weights"
            f" (a folder with {CONFIG_NAME} is a checkpoint already)"
        )
    return path / OFFICIAL_NAME


def _is_official(source: Path) -> bool:
    """Whether a file is an official checkpoint: by its name, or by the variant file beside it."""
    return source.suffix in PICKLES and (source.name == OFFICIAL_NAME or source.with_name(VARIANT_NAME).is_file())


def _read_mmseg(source: Path) -> dict[str, Any] | None:
    """What a checkpoint of mmsegmentation's holds; None where a file is none, as beside a variant file."""
    other = source.suffix not in PICKLES or source.with_name(VARIANT_NAME).is_file()
    held = None if other else load_plain(source)
    return held if is_mmseg(held) else None


def _classes(options: Options) -> Classes:
    """Class names and colours of the fresh decoder."""
    if (options.dataset is None) == (options.num_classes is None):
        raise ConfigError("ViT weights have no classes of their own; pass one of --dataset and --num-classes")
    return classes_of("", options.num_classes) if options.dataset is None else _dataset_classes(options)


def _dataset_classes(options: Options) -> Classes:
    name = options.dataset or ""
    require_known(name)
    if options.data is not None and name != "shapes":
        layout = layout_of(name, options.data, "train")
        return layout.classes, layout.palette
    return classes_of(name)


def main(argv: Sequence[str] | None = None) -> int:
    return run(import_weights, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
