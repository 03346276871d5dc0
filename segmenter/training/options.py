"""Every option of training and of probing and its default; the command lines are made from these."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from segmenter.config import PATCH_SIZES, EncoderConfig
from segmenter.datasets.option import DATASET
from segmenter.errors import ConfigError
from segmenter.option import require, require_least

_SEEDS = 2**64  # as many as PyTorch takes
# beyond these there is no run, but numbers that overflow, or no memory
_LARGEST_SCALE, _LONGEST, _MOST_THREADS = 100, 1e9, 1024


@dataclass(frozen=True)
class NetworkOptions:
    """The network: a variant of the paper, a checkpoint to start from, or a small one of your own."""

    variant: str | None = None
    """A variant of the paper, such as Seg-S-Mask/16, from random weights."""
    init: Path | None = None
    """Checkpoint to start from, such as `segmenter pretrained` makes; a decoder of other classes is made anew.
    After `segmenter probe` be gentle: --optimizer adamw --lr 3e-4 --backbone-lr 3e-5 --clip-grad 1 --warmup 5."""
    patch_size: int = 8
    """Patch size of your own network: 8, 14, 16 or 32 pixels."""
    width: int = 128
    """Width of your own network."""
    depth: int = 3
    """Encoder blocks of your own network."""
    heads: int = 2
    """Attention heads of your own network."""
    decoder: Literal["linear", "mask"] = "mask"
    """Decoder of your own network."""
    decoder_depth: int = 1
    """Mask transformer blocks of your own network."""
    dropout: float | None = None
    """Dropout in the decoder; default the variant's or checkpoint's, 0 for your own network."""
    drop_path: float | None = None
    """Stochastic depth in the encoder; default the variant's or checkpoint's, 0 for your own network."""

    def __post_init__(self) -> None:
        own = [
            f"--{name.replace('_', '-')}"
            for name in ("patch_size", "width", "depth", "heads", "decoder", "decoder_depth")
            if getattr(self, name) != getattr(NetworkOptions, name)
        ]
        require_least(self, width=1, depth=1, heads=1, decoder_depth=1)
        require(self.patch_size in PATCH_SIZES, "--patch-size", self.patch_size, f"one of {PATCH_SIZES}")
        given = [f"--{name}" for name in ("variant", "init") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError("--variant and --init both name a network; pass one of them")
        if given and own:
            raise ConfigError(f"{', '.join(own)} shape a network of your own; drop them, or {given[0]}")


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimiser and learning rates; the defaults are the paper's."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 1e-3
    """Learning rate; of the decoder alone where --backbone-lr is given."""
    backbone_lr: float | None = None
    """Learning rate of the encoder; default the same as --lr."""
    min_lr: float = 1e-5
    """Learning rate at the end; the encoder's in proportion."""
    power: float = 0.9
    """Power of the polynomial decay."""
    warmup: int = 0
    """Updates over which the learning rate rises from its minimum."""
    momentum: float = 0.9
    """SGD's momentum."""
    nesterov: bool = False
    """Nesterov's momentum, which the official code's SGD has by timm; mmsegmentation trains Segmenter without."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averages of gradients and of their squares."""
    weight_decay: float = 0.0
    """Decay of weights; never of biases, norms, position embeddings and tokens."""
    layer_decay: float = 1.0
    """What each encoder block's learning rate is of that of the block after it, such as 0.75; 1 for the same."""
    ema: float = 0.0
    """Average the weights of all updates, keeping this share of the average at each, such as 0.999 (less at first).
    The average is what evaluations judge, and what best/ and last/ hold. 0 for none."""
    clip_grad: float = 0.0
    """Largest norm of the gradient, 0 for any."""
    freeze_encoder_blocks: int = 0
    """Leading encoder blocks (and what comes before them) that do not learn; all blocks: the whole encoder."""
    freeze_for: float = 1.0
    """Share of the run for which the blocks of --freeze-encoder-blocks do not learn."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision; auto is bf16 where the device computes in it, off elsewhere."""
    loss_stride: int = 1
    """Compute the loss on every n-th pixel, along both sides."""
    class_weights: bool = False
    """Weight classes by the inverse square root of their frequency in at most 500 images, spread over all of training.
    A class that none of them shows gets the largest weight of the others."""

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "--lr", self.lr, "more than 0")
        require(0 <= (self.backbone_lr or 0) < math.inf, "--backbone-lr", self.backbone_lr, "0 or more")
        require(0 <= self.power < math.inf, "--power", self.power, "0 or more")
        require(0 <= self.momentum < 1, "--momentum", self.momentum, "a share from 0 to below 1")
        require(self.clip_grad >= 0, "--clip-grad", self.clip_grad, "0 or more")
        require(self.freeze_encoder_blocks >= 0, "--freeze-encoder-blocks", self.freeze_encoder_blocks, "0 or more")
        require(0 <= self.freeze_for <= 1, "--freeze-for", self.freeze_for, "a share from 0 to 1")
        require(0 <= self.weight_decay < math.inf, "--weight-decay", self.weight_decay, "0 or more")
        require(0 < self.layer_decay <= 1, "--layer-decay", self.layer_decay, "more than 0, at most 1")
        require(0 <= self.ema < 1, "--ema", self.ema, "a share from 0 to below 1")


@dataclass(frozen=True)
class AugmentOptions:
    """What the network sees of each image: crops, changed at random."""

    augment: Literal["paper", "mild", "flip", "none"] = "paper"
    """Which changes: those of the paper (scales of 0.5 to 2, mirroring, colours), or fewer.
    mild has scales of 1 to 1.8, mirroring and contrast; flip mirrors alone."""
    crop: tuple[int, int] | None = None
    """Height and width of training crops; default the network's image size.
    A checkpoint's learnt positions are resized to another, which is its image size, and the paper's window, from there.
    For a network of your own that is 16 patches a side, and where none is named the paper's 512."""
    scale: tuple[float, float] | None = None
    """Smallest and largest random scale, 1 being where the image just covers the crop; default that of --augment."""
    short_side: int | None = None
    """Pixels of the shorter side at a scale of 1; left out, the image just covers the crop there.
    The paper's are 512 (640 for Seg-L) for ADE20K, 520 for Pascal Context and 1024 for Cityscapes."""
    long_ratio: float | None = None
    """The longer side has at most so many times the shorter side's pixels; default 4.
    That is the paper's for ADE20K; it has 8 for Pascal Context and 2 for Cityscapes."""

    def __post_init__(self) -> None:
        require((self.short_side or 1) >= 1, "--short-side", self.short_side, "at least a pixel")
        ratio, scale = self.long_ratio, self.scale
        require(ratio is None or 1 <= ratio < math.inf, "--long-ratio", ratio, "at least 1")
        require(scale is None or max(scale) <= _LARGEST_SCALE, "--scale", scale, f"at most {_LARGEST_SCALE}")
        if self.crop is not None and min(self.crop) < 1:
            raise ConfigError(f"--crop {self.crop[0]} {self.crop[1]}: wanted at least a pixel a side")

    def crop_for(self, image_size: tuple[int, int] = EncoderConfig.image_size) -> tuple[int, int]:
        """Height and width of training crops for a network of this image size."""
        return self.crop or image_size


@dataclass(frozen=True)
class LengthOptions:
    """How long to train; whichever end comes first counts, and the learning rate decays towards it."""

    batch: int = 8
    """Images an update, over all processes."""
    steps: int | None = None
    """Updates."""
    epochs: float | None = None
    """Passes over the training images; 64 when no other end is given."""
    max_minutes: float | None = None
    """Minutes in all, evaluations on the way included, the last one not; those of before a resume count."""

    def __post_init__(self) -> None:
        require(self.batch >= 1, "--batch", self.batch, "at least 1 image")
        require(self.steps is None or self.steps >= 1, "--steps", self.steps, "at least 1 update")
        for option, value in (("--epochs", self.epochs), ("--max-minutes", self.max_minutes)):
            require(value is None or 0 < value <= _LONGEST, option, value, f"more than 0, at most {_LONGEST:g}")


@dataclass(frozen=True)
class RecordOptions:
    """Checkpoints, evaluation and logs."""

    eval_every: int | None = None
    """Updates between evaluations; 0 only at the end, default five times a run."""
    eval_window: int | None = None
    """Side in pixels of the sliding windows of evaluations; images go through whole when not given."""
    save_every_seconds: float = 60.0
    """Seconds between checkpoints."""
    log_every: int = 10
    """Updates between log records."""
    tensorboard: bool = True
    """Log for TensorBoard, where it is installed."""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well; WANDB_MODE=offline keeps it on this machine."""

    def __post_init__(self) -> None:
        require((self.eval_every or 0) >= 0, "--eval-every", self.eval_every, "0 or more updates")
        require(self.save_every_seconds >= 0, "--save-every-seconds", self.save_every_seconds, "0 or more")
        require(self.log_every >= 1, "--log-every", self.log_every, "at least 1 update")


@dataclass(frozen=True)
class MachineOptions:
    """Where to train, and how: by many processes when torchrun starts it, which share every batch."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is cuda where there is one. Of many processes each takes a GPU of its own."""
    accumulate: int = 1
    """Parts in which a process takes its share of a batch, one after the other, to need less memory.
    They add up to the whole batch but for rounding, except that dropout and stochastic depth are drawn a part."""
    compile: bool = False
    """Compile the network by torch.compile: minutes at first, then quicker updates."""
    deterministic: bool = False
    """Only computations that repeat to the bit, on a GPU too; slower. On a CPU they do anyway."""
    threads: int = 0
    """Threads of a CPU computation; 0 leaves it to PyTorch."""
    workers: int | None = None
    """Processes that load and augment images; default one a spare core, at least 1, at most 8."""
    augment_on: Literal["cpu", "device"] = "cpu"
    """Who resizes, crops and distorts training images: those processes, or the device, a batch at a time."""
    on_bad_sample: Literal["stop", "skip"] = "stop"
    """At a training image or mask that is damaged, or goes while the run reads it: save and stop, or take the next one.
    What is left out is named. An image that has no mask when the run starts is refused either way."""

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, "--accumulate", self.accumulate, "at least 1 part")
        require(0 <= self.threads <= _MOST_THREADS, "--threads", self.threads, f"0 to {_MOST_THREADS}")
        require((self.workers or 0) >= 0, "--workers", self.workers, "0 or more")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class TrainOptions:
    """Train a Segmenter; a run that was stopped goes on from its last checkpoint when started again.

    On many GPUs or machines: torchrun --nproc-per-node 8 -m segmenter.train ..., with --out in a folder all share.
    Eight processes compute what one does, but for rounding. With dropout or stochastic depth, as the paper's variants
    have, chance is drawn in each process: what they compute is what one does with --accumulate 8.
    """

    out: Path
    """Folder of the run: last/, best/, metrics.json, metrics.jsonl, tensorboard/."""
    dataset: Annotated[str, DATASET] = "shapes"
    """The labelled images to train on."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    recipe: str | None = None
    """Result row to train as, such as ade20k-seg-b-mask-16 (`segmenter recipes` lists them); options beside it win."""
    resume: Literal["auto", "always", "never"] = "auto"
    """Where --out holds a run: auto goes on if the options agree, always if the network's and --batch do.
    With never, that run is deleted and this one starts over."""
    seed: int = 0
    """Seed of all that is random: weights, the order of images and their changes."""
    limit: int = 0
    """Use so many images of each split only; 0 for all."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)
    length: LengthOptions = field(default_factory=LengthOptions)
    record: RecordOptions = field(default_factory=RecordOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)

    def __post_init__(self) -> None:
        require(0 <= self.seed < _SEEDS, "--seed", self.seed, f"0 or more, below {_SEEDS}")
        require(self.limit >= 0, "--limit", self.limit, "0 or more images")

    def identity(self) -> dict[str, Any]:
        """What must agree for a run to be the same run, flat and fit for JSON: all but where, how often and on what."""
        groups = (self.network, self.optimizer, self.augmentation, self.length)
        flat: dict[str, Any] = {"dataset": self.dataset, "seed": self.seed, "limit": self.limit}
        for group in groups:
            flat.update(asdict(group))
        return {key: _plain(value) for key, value in flat.items()}


@dataclass(frozen=True)
class ProbeOptions:
    """Fit a checkpoint's decoder on its frozen encoder, whose tokens are computed once."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint to start from; `segmenter pretrained` makes one of ViT weights."""
    out: Path
    """Checkpoint folder to write."""
    dataset: Annotated[str, DATASET]
    """The labelled images to fit on."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    limit: int = 0
    """Use so many training images only; 0 for all. Their tokens are held in memory."""
    steps: int = 1500
    """Updates of the decoder."""
    batch: int = 8
    """Images an update."""
    lr: float = 1e-2
    """AdamW's first learning rate; 1e-2 suits a linear decoder, 1e-3 a mask transformer."""
    weight_decay: float = 1e-2
    """Of the decoder's weights."""
    loss_stride: int | None = None
    """Compute the loss on every n-th pixel, along both sides; half a patch when left out."""
    class_weights: bool = False
    """Weight classes by the inverse square root of their frequency."""
    seed: int = 0
    """Seed of the images drawn for each update."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is cuda where there is one."""

    def __post_init__(self) -> None:
        require_least(self, steps=1, batch=1)
        require(0 < self.lr < math.inf, "--lr", self.lr, "more than 0")
        require(0 <= self.weight_decay < math.inf, "--weight-decay", self.weight_decay, "0 or more")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
