"""What training costs beside a bare PyTorch loop over the same batches, in CPU time, turn by turn.

python -m segmenter_bench.train_step --variant Seg-S-Mask/16 --crop 224 224 --batch 2
"""

import copy
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from segmenter.cli import run as run_command
from segmenter.config import variant
from segmenter.datasets import Sample
from segmenter.datasets.fitted import Fitted
from segmenter.datasets.shapes import Shapes
from segmenter.errors import VerificationError
from segmenter.files import require_writable
from segmenter.metrics import ConfusionMatrix
from segmenter.model import Segmenter
from segmenter.option import require, require_least
from segmenter.ranks import Ranks
from segmenter.training import ops_cpu
from segmenter.training.augment import PRESETS
from segmenter.training.data import Augmented, Order, batches
from segmenter.training.interruption import Interruption
from segmenter.training.log import TrainingLog
from segmenter.training.loop import Metrics, Trainer
from segmenter.training.optimizer import set_training
from segmenter.training.options import (
    AugmentOptions,
    LengthOptions,
    MachineOptions,
    OptimizerOptions,
    RecordOptions,
    TrainOptions,
)
from segmenter.training.state import RunFolder, TrainingRecord
from segmenter_bench.runs import write_record

_LR = 1e-3


@dataclass(frozen=True)
class Options:
    """Time updates of `segmenter train`, log included, and of a bare loop: forward, loss, backward, step.

    Both take the same batches from the same loader, and end with the same weights, which is checked. CPU time is what
    an update costs whatever else the machine does.
    """

    variant: str = "Seg-Ti-Mask/16"
    """A variant of the paper."""
    crop: tuple[int, int] = (256, 256)
    """Height and width of the crops."""
    batch: int = 4
    """Images an update."""
    updates: int = 10
    """Updates a turn."""
    rounds: int = 5
    """Turns of each."""
    threads: int = 1
    """Threads of the computation."""
    most: float | None = None
    """Exit with 2 where training costs more than so many times the bare loop, such as 1.05."""
    json: Path | None = None
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        require_least(self, batch=1, updates=1, rounds=1, threads=1)
        require(min(self.crop) >= 1, "--crop", " ".join(map(str, self.crop)), "at least 1 pixel each way")
        possible = self.most is None or 0.0 < self.most < math.inf
        require(possible, "--most", self.most, "a number above 0; 5 % more than the bare loop is 1.05")


class Kept:
    """A few samples in memory, so that reading them costs nothing."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        shapes = Shapes("train", length=count)
        fitted = Fitted(shapes, size)
        self.samples = [fitted[index] for index in range(count)]
        self.classes, self.palette, self.ignore, self.channels = shapes.classes, shapes.palette, shapes.ignore, 3

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class OnlyUpdates(Trainer):
    """Training without what is no update."""

    def save(self) -> None: ...

    def evaluate(self, log: object, interruption: Interruption) -> Metrics:
        return {}


def train_options(options: Options, out: Path) -> TrainOptions:
    return TrainOptions(
        out=out,
        optimizer=OptimizerOptions(lr=_LR, min_lr=_LR, amp="off"),
        augmentation=AugmentOptions(augment="none", crop=options.crop),
        length=LengthOptions(batch=options.batch, steps=options.updates),
        record=RecordOptions(tensorboard=False),
        machine=MachineOptions(device="cpu", threads=options.threads, workers=0),
    )


def ours(model: Segmenter, data: Kept, options: Options) -> float:
    """CPU seconds of a turn of training."""
    with tempfile.TemporaryDirectory() as out:
        chosen = train_options(options, Path(out))

        def judge(_: Segmenter) -> ConfusionMatrix:
            raise NotImplementedError

        record = TrainingRecord(0, 0.0, {}, {})
        trainer = OnlyUpdates(
            chosen, RunFolder(Path(out)), model, data, judge, lambda _: {}, record, Ranks("cpu"), resume=False
        )
        with TrainingLog(chosen, 0) as log:
            began = time.process_time()
            trainer.train(log, Interruption())
            return time.process_time() - began


def bare(model: Segmenter, data: Kept, options: Options) -> float:
    """CPU seconds of the same updates as one would first write them."""
    samples = Augmented(data, options.crop, PRESETS["none"], model.config.preprocess, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9)
    set_training(model, 0)
    began = time.process_time()
    for images, labels in batches(samples, Order(len(data), options.batch, 0, 0, options.updates), 0):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels.long(), ignore_index=255).backward()
        optimizer.step()
    return time.process_time() - began


def turns(options: Options) -> Iterator[tuple[float, float]]:
    """CPU seconds of each round's turn of training and of the bare loop.

    Raises VerificationError where they do not end with the same weights.
    """
    torch.manual_seed(0)
    data = Kept(2 * options.batch, options.crop)
    config = variant(options.variant, data.classes)
    steady = replace(config.encoder, drop_path=0.0, dropout=0.0), replace(config.decoder, dropout=0.0)
    start = Segmenter(replace(config, encoder=steady[0], decoder=steady[1]), ops_cpu)
    for _ in range(options.rounds + 1):  # the first warms both up
        models = copy.deepcopy(start), copy.deepcopy(start)
        yield ours(models[0], data, options), bare(models[1], data, options)
        for (name, mine), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            if not torch.allclose(mine, theirs, rtol=0, atol=1e-5):
                raise VerificationError(f"{name}: other weights after {options.updates} updates than the bare loop's")


def measure(options: Options) -> int:
    if options.json is not None:
        require_writable(options.json)
    torch.set_num_threads(options.threads)
    pairs = list(turns(options))[1:]
    ratio = median(mine / theirs for mine, theirs in pairs)
    mine, theirs = (1000 * median(column) / options.updates for column in zip(*pairs, strict=True))
    print(
        f"{options.variant}, {options.crop[1]}x{options.crop[0]}, batch {options.batch}, threads {options.threads}:"
        f" {mine:.1f} CPU ms an update, {theirs:.1f} of a bare loop; {ratio:.3f} times, the median of"
        f" {options.rounds} turns ({min(a / b for a, b in pairs):.3f} to {max(a / b for a, b in pairs):.3f})"
    )
    if options.json is not None:
        write_record(options.json, options, {"cpu_s": pairs, "ratio": ratio})
    if options.most is not None and ratio > options.most:
        raise VerificationError(f"training costs {ratio:.3f} times the bare loop; wanted at most {options.most}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(measure, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
