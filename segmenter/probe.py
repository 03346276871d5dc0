"""Fit a decoder on a frozen encoder: `python -m segmenter.probe INIT --out PROBED --dataset camvid`."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmenter.cli import run, share_cores
from segmenter.datasets.option import DATASET
from segmenter.training.options import require


@dataclass(frozen=True)
class Options:
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
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is cuda where there is one."""

    def __post_init__(self) -> None:
        for option, value in (("--steps", self.steps), ("--batch", self.batch)):
            require(value >= 1, option, value, "at least 1")
        require(0 < self.lr < math.inf, "--lr", self.lr, "more than 0")
        require(0 <= self.weight_decay < math.inf, "--weight-decay", self.weight_decay, "0 or more")


def probe(options: Options) -> int:
    share_cores()
    from segmenter.training.probe import run_probe

    return run_probe(options)


def main(argv: Sequence[str] | None = None) -> int:
    return run(probe, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
