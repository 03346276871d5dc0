"""Fit the decoder of a checkpoint on its frozen encoder, whose tokens are computed once.

A fresh decoder on a pretrained encoder wants thousands of updates, and each costs nothing but the decoder once the
tokens are kept. Fine-tuning the whole network afterwards starts from there and does not bend the encoder towards a
random decoder.
Source: linear probing, then fine-tuning (Kumar et al., ICLR 2022).
"""

import math
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from segmenter.checkpoint import CONFIG_NAME, load_model, require_new_checkpoint, save_model
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.datasets.fitted import Fitted
from segmenter.decoder import LinearDecoder
from segmenter.device import pick_device
from segmenter.evaluation import evaluate_labels, require_labelled, require_same_classes
from segmenter.files import require_writable
from segmenter.inference import Inference, predictor
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter.training.loss import class_weights, finite_weights, require_finite, require_stride, segmentation_loss
from segmenter.training.network import widened
from segmenter.training.optimizer import autocast_type
from segmenter.training.options import ProbeOptions
from segmenter.training.schedule import Schedule


def run_probe(options: ProbeOptions) -> int:
    """The command's work.

    Raises ConfigError for impossible options or when the loss stops being a number, and what checkpoints and datasets
    raise.
    """
    require_new_checkpoint(options.out, options.checkpoint)
    require_writable(options.out / CONFIG_NAME)
    device = torch.device(pick_device(options.device))
    model = load_model(options.checkpoint)
    require_stride(_stride(options, model), model.config.encoder.patch_size)
    train = Subset(open_dataset(options.dataset, options.data, "train"), options.limit)
    val = Subset(open_dataset(options.dataset, options.data, "val"), 32)
    require_same_classes(model.config.classes, train, options.checkpoint)
    # a checkpoint of anonymous classes learns their names and colours here
    model = _named_for(model, train).to(device).eval()
    size = train[0].image.shape[:2]
    torch.manual_seed(options.seed)
    tokens, labels = encode(model, Fitted(train, (size[0], size[1])), device)
    standardize(model, tokens)
    loss = fit_decoder(model, tokens, labels, options, device)
    save_model(model, options.out)
    matrix = evaluate_labels(predictor(model, Inference(device=options.device)), val)
    require_labelled(matrix, val)
    print(f"{options.out}: loss {loss:.3f}, mIoU {matrix.miou:.4f} on {len(val)} validation images")
    return 0


def _named_for(model: Segmenter, data: SegmentationDataset) -> Segmenter:
    """The network with the classes and colours of a dataset, for images of its channels.

    Raises ConfigError for fewer than the network takes.
    """
    config, tensors = widened(model, data.channels)
    ours = Segmenter(replace(config, classes=data.classes, palette=data.palette))
    ours.load_state_dict(tensors)
    return ours


@torch.no_grad()
def encode(model: Segmenter, samples: SegmentationDataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Patch tokens float16 [S, h w, C] and labels uint8 [S, H, W] of a dataset of S samples that have one size."""
    precision = autocast_type("auto", device)
    tokens, labels = [], []
    for index in track(range(len(samples)), "encoding", console=Console(stderr=True), transient=True):
        sample = samples[index]
        images = normalize(sample.image, model.config.preprocess).to(device)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            tokens.append(model.patch_tokens(images).to("cpu", torch.float16))
        labels.append(torch.from_numpy(np.array(sample.labels)))
    return torch.cat(tokens), torch.stack(labels)


@torch.no_grad()
def standardize(model: Segmenter, tokens: Tensor) -> None:
    """Fold the mean and deviation of each channel of `tokens` [S, N, C] into the encoder's last norm and into them.

    The decoder then sees channels of one scale, which AdamW fits far sooner; the network stays one plain Segmenter. The
    decoder's first layer takes the opposite, so that what a trained one gives stays the same.
    """
    norm = model.encoder.norm
    sample = tokens[:: max(len(tokens) // 64, 1)].float().flatten(0, 1)
    mean, deviation = sample.mean(0), sample.std(0).clamp(min=1e-4)
    for part in tokens:  # in place and one at a time: all of them are gigabytes in float32
        part.copy_((part.float() - mean) / deviation)
    mean, deviation = mean.to(norm.weight.device), deviation.to(norm.weight.device)
    decoder = model.decoder
    first = decoder.head if isinstance(decoder, LinearDecoder) else decoder.proj_dec
    first.bias.add_(first.weight @ mean)
    first.weight.mul_(deviation)
    norm.bias.sub_(mean).div_(deviation)
    norm.weight.div_(deviation)


def fit_decoder(model: Segmenter, tokens: Tensor, labels: Tensor, options: ProbeOptions, device: torch.device) -> float:
    """Train the decoder on tokens [S, h w, C] and labels [S, H, W]; returns the mean loss of the last tenth.

    Raises ConfigError when the loss, or in the end a weight, is no longer a number.
    """
    config = model.config
    P = config.encoder.patch_size
    grid = -(-labels.shape[1] // P), -(-labels.shape[2] // P)
    weights = None
    if options.class_weights:
        weights = class_weights((one.numpy() for one in labels), config.num_classes).to(device)
    schedule = Schedule(lr=options.lr, min_lr=0.0, warmup=min(20, options.steps - 1), steps=options.steps)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    order = torch.Generator().manual_seed(options.seed)
    losses = []
    advice = f"lower --lr ({options.lr}), or check that the encoder's own weights are finite"
    # without dropout, which fine-tuning has: in attention on a CPU it takes three times as long
    model.decoder.eval()
    for step in track(range(options.steps), "fitting", console=Console(stderr=True), transient=True):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        chosen = torch.randint(len(tokens), (options.batch,), generator=order)
        masks = model.decoder(tokens[chosen].to(device, torch.float32), grid)
        loss = segmentation_loss(masks, labels[chosen].to(device), P, _stride(options, model), weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        require_finite(math.isfinite(losses[-1]), step + 1, advice)
    require_finite(finite_weights(model.decoder), options.steps, advice)
    last = losses[-max(options.steps // 10, 1) :]
    return sum(last) / len(last)


def _stride(options: ProbeOptions, model: Segmenter) -> int:
    return options.loss_stride or model.config.encoder.patch_size // 2
