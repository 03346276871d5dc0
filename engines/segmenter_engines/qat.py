"""Quantisation-aware fine-tuning: a checkpoint learns to live with the rounding of a graph quantised from it.

    segmenter quantize m/model.fp32.onnx --out m/model.int8.onnx ...     (the recipe: layers, smoothing, scales)
    segmenter qat runs/mine/best --recipe m/model.int8.onnx --out runs/qat ...
    segmenter export runs/qat --out q/model.fp32.onnx
    segmenter quantize q/model.fp32.onnx --out q/model.int8.onnx --scales-of m/model.int8.onnx

The result is a plain checkpoint, in floating point. nvidia-modelopt fine-tunes too, but with its own scales, modules
and exporter; this one rounds exactly as the graph that is deployed.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import onnx
import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import nn

from segmenter.checkpoint import CONFIG_NAME, load_model, require_new_checkpoint, save_model
from segmenter.cli import run
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.datasets.option import DATASET
from segmenter.device import pick_device
from segmenter.evaluation import evaluate_labels, require_same_classes
from segmenter.files import require_writable
from segmenter.inference import Inference, predictor
from segmenter.model import Segmenter
from segmenter.option import require, require_least
from segmenter.training.augment import PRESETS
from segmenter.training.data import Augmented, Order, batches, spare_workers
from segmenter.training.loss import finite_weights, require_finite, require_stride, segmentation_loss
from segmenter.training.schedule import Schedule
from segmenter_engines.fake_quant import fake_quantised, take_smoothing
from segmenter_engines.formats import REAL
from segmenter_engines.manifest import read_quantised, require_checkpoint
from segmenter_engines.qdq import Quantised, quantised_layers


@dataclass(frozen=True)
class Options:
    """Fine-tune a checkpoint under the rounding of a graph that was quantised from it."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """The checkpoint the recipe was made of."""
    recipe: Path
    """An int8 or fp8 .onnx that `segmenter quantize` made of it: its layers, smoothing and activation scales."""
    out: Path
    """Checkpoint folder to write."""
    dataset: Annotated[str, DATASET]
    """Dataset to train on (train) and to judge on (val)."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    steps: int = 100
    """Updates."""
    batch: int = 2
    """Images an update."""
    lr: float = 1e-5
    """AdamW's first learning rate; it falls to 0."""
    augment: str = "mild"
    """How training images are changed at random: paper, mild, flip or none, as of `segmenter train`."""
    loss_stride: int | None = None
    """Compute the loss on every n-th pixel, along both sides; half a patch when left out."""
    judge_images: int = 32
    """Validation images the mIoU before and after is measured on; 0 for all."""
    workers: int | None = None
    """Processes that load images; default one a spare core."""
    seed: int = 0
    """Seed of the order of images and of their changes."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is cuda where there is one."""

    def __post_init__(self) -> None:
        require_least(self, steps=1, batch=1)
        require(0 < self.lr < math.inf, "--lr", self.lr, "more than 0")
        require(self.augment in PRESETS, "--augment", self.augment, f"one of {', '.join(PRESETS)}")
        require((self.workers or 0) >= 0, "--workers", self.workers, "0 or more")
        require(self.seed >= 0, "--seed", self.seed, "0 or more")


def prepare(checkpoint: Path, recipe: Path, device: str = "cpu") -> tuple[Segmenter, dict[str, Quantised], int]:
    """A checkpoint smoothed as its recipe was, the layers the recipe quantises, and the ONNX type of its other values.

    LayerScale is folded into the linear layers, as export does it.
    Raises CheckpointError for the checkpoint, EngineError when the recipe is not quantised, or of other weights.
    """
    manifest = read_quantised(recipe)
    require_checkpoint(recipe, manifest, checkpoint)
    graph = onnx.load(recipe).graph
    model = load_model(checkpoint)
    model.fold_layer_scale()
    model.config = replace(model.config, encoder=replace(model.config.encoder, layer_scale=False))
    take_smoothing(model, graph)
    return model.to(device), quantised_layers(graph), REAL[manifest.details["base_precision"]]


def fine_tune(model: Segmenter, samples: Augmented, options: Options) -> float:
    """Train every parameter; returns the mean loss of the last tenth. Fake quantisation is the caller's.

    Raises ConfigError when the loss, or in the end a weight, is no longer a number.
    """
    device = next(model.parameters()).device
    P = model.config.encoder.patch_size
    stride = options.loss_stride or P // 2
    schedule = Schedule(
        lr=options.lr, min_lr=0.0, warmup=min(options.steps // 10, options.steps - 1), steps=options.steps
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
    order = Order(len(samples.dataset), options.batch, options.seed, 0, options.steps)
    workers = spare_workers() if options.workers is None else options.workers
    losses: list[float] = []
    advice = f"lower --lr ({options.lr})"
    made = batches(samples, order, workers)
    for images, labels in track(made, "fine-tuning", options.steps, console=Console(stderr=True), transient=True):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(len(losses))
        loss = segmentation_loss(model.masks(images.to(device)), labels.to(device), P, stride)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        require_finite(math.isfinite(losses[-1]), len(losses), advice)
    require_finite(finite_weights(model), len(losses), advice)
    last = losses[-max(options.steps // 10, 1) :]
    return sum(last) / len(last)


def qat(options: Options) -> int:
    require_new_checkpoint(options.out, options.checkpoint)
    require_writable(options.out / CONFIG_NAME)
    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    model, layers, real = prepare(options.checkpoint, options.recipe, device)
    require_stride(options.loss_stride or model.config.encoder.patch_size // 2, model.config.encoder.patch_size)
    train = open_dataset(options.dataset, options.data, "train")
    val = Subset(open_dataset(options.dataset, options.data, "val"), options.judge_images)
    require_same_classes(model.config.classes, train, options.checkpoint)
    size = model.config.encoder.image_size
    samples = Augmented(train, size, PRESETS[options.augment], model.config.preprocess, options.seed)
    whole = _miou(model, val, device)
    with fake_quantised(model, layers, real):
        before = _miou(model, val, device)
        loss = fine_tune(model, samples, options)
        after = _miou(model, val, device)
    save_model(model, options.out)
    print(
        f"{options.out}: loss {loss:.3f}; mIoU on {len(val)} validation images: {whole:.4f} in floating point,"
        f" {before:.4f} quantised, {after:.4f} quantised after {options.steps} updates"
    )
    return 0


def _miou(model: Segmenter, val: SegmentationDataset, device: str) -> float:
    return evaluate_labels(predictor(model, Inference(device=device)), val, progress=False).miou_in_truth


def main(argv: Sequence[str] | None = None) -> int:
    return run(qat, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
