"""Batches for training: which image comes when, augmented how, is decided by the seed and the sample's number alone."""

import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segmenter.config import Preprocess
from segmenter.cores import usable_cores
from segmenter.datasets import SegmentationDataset
from segmenter.errors import SegmenterError
from segmenter.training.augment import Augmentation, augment

# the number of a sample in the whole run, and the image it shows
Place = tuple[int, int]
Batch = tuple[Tensor, Tensor]
_ORDER, _AUGMENT = 0, 1  # keep the two uses of the seed apart


class Order(Sampler[list[Place]]):
    """Batches of places from update `first` on: every epoch a new permutation, batches running over its end.

    Update i always gets the same images, so a resumed run sees what an uninterrupted one would have.
    """

    def __init__(self, images: int, batch: int, seed: int, first: int, steps: int | None) -> None:
        self.images, self.batch, self.seed, self.first, self.steps = images, batch, seed, first, steps

    def __iter__(self) -> Iterator[list[Place]]:
        step, epoch, permutation = self.first, -1, np.empty(0, np.int64)
        while self.steps is None or step < self.steps:
            places = []
            for number in range(step * self.batch, (step + 1) * self.batch):
                if number // self.images != epoch:
                    epoch = number // self.images
                    permutation = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.images)
                places.append((number, int(permutation[number % self.images])))
            yield places
            step += 1


class Augmented(Dataset[Batch]):
    """A dataset's images as augmented pairs, by place."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        crop: tuple[int, int],
        settings: Augmentation,
        preprocess: Preprocess,
        seed: int,
    ) -> None:
        self.dataset, self.crop, self.settings, self.preprocess, self.seed = dataset, crop, settings, preprocess, seed

    def __getitem__(self, place: Place) -> Batch:
        number, index = place
        sample = self.dataset[index]
        seed = (self.seed, _AUGMENT, number)
        return augment(sample.image, sample.labels, seed, self.crop, self.settings, self.preprocess)

    def __getitems__(self, places: list[Place]) -> "list[Batch] | SegmenterError":
        # an error raised in a worker would arrive as a traceback in a string; handed over it stays one readable line
        try:
            return [self[place] for place in places]
        except SegmenterError as error:
            return error


def batches(samples: Augmented, order: Order, workers: int, pin_memory: bool = False) -> Iterator[Batch]:
    """Normalised images float32 [B, 3, h, w] and labels uint8 [B, h, w], in order; `workers` 0 makes them here.

    Raises ImageError or DataError for a bad file.
    """
    loader: DataLoader[Batch] = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    for batch in loader:
        if isinstance(batch, SegmenterError):
            raise batch
        yield batch


def spare_workers() -> int:
    """Workers that keep the computation fed: one a core but the first, at least 1, at most 8."""
    return min(max(usable_cores() - 1, 1), 8)


def _stack(pairs: "list[Batch] | SegmenterError") -> Batch | SegmenterError:
    if isinstance(pairs, SegmenterError):
        return pairs
    return torch.stack([image for image, _ in pairs]), torch.stack([labels for _, labels in pairs])


def _start_worker(_: int) -> None:
    # Ctrl-C, and batch systems, signal every process of a run. The parent decides: it saves, then ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
