"""Batches for training: which image comes when, augmented how, is decided by the seed and the sample's number alone."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from segmenter.config import Preprocess
from segmenter.cores import usable_cores
from segmenter.datasets import Sample, SegmentationDataset
from segmenter.errors import DataError, SegmenterError
from segmenter.training.augment import Augmentation, Draw, augment, draw
from segmenter.training.batch_augment import Raw, augment_batch, stack_raw

# the number of a sample in the whole run, and the image it shows
Place = tuple[int, int]
Batch = tuple[Tensor, Tensor]
# a sample, augmented or with what was drawn for it, and what was skipped on the way to it
Item = tuple[Batch | tuple[np.ndarray, np.ndarray, Draw], tuple[str, ...]]
_ORDER, _AUGMENT = 0, 1  # keep the two uses of the seed apart
_MOST_SKIPPED = 100  # bad samples in a row: a disk that is gone, and no odd file
_CPU = torch.device("cpu")


class Order(Sampler[list[Place]]):
    """Batches of places from update `first` on: every epoch a new permutation, batches running over its end.

    Update i always gets the same images, so a resumed run sees what an uninterrupted one would have.
    """

    def __init__(self, images: int, batch: int, seed: int, first: int, steps: int | None) -> None:
        self.images, self.batch, self.seed, self.first, self.steps = images, batch, seed, first, steps

    def __iter__(self) -> Iterator[list[Place]]:
        step, epoch = self.first, -1
        permutation: np.ndarray = np.empty(0, np.int64)
        while self.steps is None or step < self.steps:
            places = []
            for number in range(step * self.batch, (step + 1) * self.batch):
                if number // self.images != epoch:
                    epoch = number // self.images
                    permutation = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.images)
                places.append((number, int(permutation[number % self.images])))
            yield places
            step += 1


class Augmented(Dataset[Item]):
    """A dataset's images as augmented pairs, by place.

    skip_bad: where a sample cannot be read, take the next one that can, and say so. raw: leave the augmentation, once
    it is drawn, to the device.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        crop: tuple[int, int],
        settings: Augmentation,
        preprocess: Preprocess,
        seed: int,
        *,
        skip_bad: bool = False,
        raw: bool = False,
    ) -> None:
        self.dataset, self.crop, self.settings, self.preprocess, self.seed = dataset, crop, settings, preprocess, seed
        self.skip_bad, self.raw = skip_bad, raw

    def __getitem__(self, place: Place) -> Item:
        number, index = place
        sample, skipped = self._readable(index)
        seed = (self.seed, _AUGMENT, number)
        if self.raw:
            drawn = draw(sample.labels, seed, self.crop, self.settings)
            return (sample.image, sample.labels, drawn), skipped
        return augment(sample.image, sample.labels, seed, self.crop, self.settings, self.preprocess), skipped

    def _readable(self, index: int) -> tuple[Sample, tuple[str, ...]]:
        """The sample, or where bad ones are skipped the next good one in the dataset's order, and why others are not.

        Depends on nothing but the files: a run that goes on with the same ones takes the same.
        """
        skipped: list[str] = []
        while True:
            try:
                return self.dataset[(index + len(skipped)) % len(self.dataset)], tuple(skipped)
            except SegmenterError as error:
                if not self.skip_bad:
                    raise
                skipped.append(str(error))
                if len(skipped) == min(len(self.dataset), _MOST_SKIPPED):
                    raise DataError(
                        f"{skipped[0]} (and so are the {len(skipped) - 1} samples after it); too many to skip"
                    ) from error

    def __getitems__(self, places: list[Place]) -> "list[Item] | SegmenterError":
        # an error raised in a worker would arrive as a traceback in a string; handed over it stays one readable line
        try:
            return [self[place] for place in places]
        except SegmenterError as error:
            return error


def batches(
    samples: Augmented,
    order: Order,
    workers: int,
    device: torch.device = _CPU,
    note: Callable[[str], None] | None = None,
) -> Iterator[Batch]:
    """Normalised images float32 [B, C, h, w] and labels uint8 [B, h, w] on `device`, in order.

    workers: processes that make them, 0 for this one. note: told of every bad sample that is skipped, once each; they
    are named on stderr when None.
    Raises ImageError or DataError for a bad file that is not skipped.
    """
    loader: DataLoader[Item] = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
    )
    told: set[str] = set()
    for batch in _batches_of(loader):
        if isinstance(batch, SegmenterError):
            raise batch
        made, skipped = batch
        for line in skipped:
            if line not in told:
                (note or _say)(f"skipped: {line}")
            told.add(line)
        if isinstance(made, Raw):
            yield augment_batch(made, samples.crop, samples.preprocess, device)
        else:
            images, labels = made
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _batches_of(loader: DataLoader[Item]) -> Iterator[Any]:
    """What a loader gives; RuntimeError where a process of its own died.

    PyTorch raises that itself, but for one that dies while its tensors are handed over: then a connection breaks.
    """
    others, ours = set(active_children()), set[BaseProcess]()
    made: Iterator[Any] = iter(())
    try:
        try:
            made = iter(loader)
        finally:
            ours = set(active_children()) - others
        yield from made
    except Exception as error:
        # an error of a worker's is in a cycle with the iterator, which ends its processes as it is freed
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, ConnectionError | EOFError):
            raise RuntimeError(f"DataLoader worker ended: {error or type(error).__name__}") from error
        raise
    finally:
        del made
        # those of an iterator that could not be made, and who hangs: they hear no SIGTERM, and at exit Python waits
        for process in ours:
            process.kill()


def spare_workers() -> int:
    """Workers that keep the computation fed: one a core but the first, at least 1, at most 8.

    Of the cores that torchrun's processes on a machine share, each counts its part.
    """
    return min(max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1, 1), 8)


def _stack(items: "list[Item] | SegmenterError") -> tuple[Batch | Raw, list[str]] | SegmenterError:
    if isinstance(items, SegmenterError):
        return items
    skipped = [line for _, lines in items for line in lines]
    raw = [sample for sample, _ in items if len(sample) == 3]
    pairs = [sample for sample, _ in items if len(sample) == 2]
    stacked: Batch | Raw = stack_raw(raw) if raw else _stacked(pairs)
    if get_worker_info() is not None:
        # a batch that PyTorch cannot share later, in a thread of its own, is lost, and waited for without end
        for tensor in stacked[:2]:
            tensor.share_memory_()
    return stacked, skipped


def _stacked(pairs: list[Batch]) -> Batch:
    return torch.stack([image for image, _ in pairs]), torch.stack([labels for _, labels in pairs])


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _start_worker(_: int) -> None:
    # Ctrl-C, and batch systems, signal every process of a run. The parent decides: it saves, then ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
