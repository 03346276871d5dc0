"""The order of training images: every image once an epoch, and the same from any update on, with any workers."""

import errno
import gc
import multiprocessing
import multiprocessing.process
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from segmenter.config import HALF
from segmenter.datasets import Sample
from segmenter.datasets.shapes import Shapes
from segmenter.errors import DataError, ImageError
from segmenter.training.augment import PRESETS
from segmenter.training.data import Augmented, Order, _start_worker, batches


def augmented(seed: int = 0) -> Augmented:
    return Augmented(Shapes("train", length=5), (32, 32), PRESETS["paper"], HALF, seed)


def test_every_image_once_an_epoch() -> None:
    places = [place for batch in Order(10, 4, seed=3, first=0, steps=10) for place in batch]
    assert [number for number, _ in places] == list(range(40))
    epochs = [[index for _, index in places[first : first + 10]] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_from_any_update_on() -> None:
    whole = list(Order(7, 3, seed=1, first=0, steps=20))
    for first in (1, 6, 13, 20):
        assert list(Order(7, 3, seed=1, first=first, steps=20)) == whole[first:]
    assert whole != list(Order(7, 3, seed=2, first=0, steps=20))
    assert list(islice(Order(7, 3, seed=1, first=2, steps=None), 5)) == whole[2:7]


def test_batch_larger_than_the_dataset() -> None:
    (batch,) = Order(2, 5, seed=0, first=0, steps=1)
    assert sorted(index for _, index in batch)[:2] == [0, 0]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    here = list(batches(augmented(), Order(5, 2, 0, 0, 6), 0))
    there = list(batches(augmented(), Order(5, 2, 0, 0, 6), workers))
    later = list(batches(augmented(), Order(5, 2, 0, 3, 6), workers))
    assert len(here) == len(there) == 6
    assert len(later) == 3
    for (images, labels), (others, other_labels) in zip(here + here[3:], there + later, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    assert here[0][0].shape == (2, 3, 32, 32)
    assert here[0][1].dtype == torch.uint8


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_handing_over_is_one_that_died(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: DataLoader[Any]) -> Iterator[Any]:
        raise error

    monkeypatch.setattr(DataLoader, "__iter__", broken)
    samples = augmented()
    with pytest.raises(RuntimeError, match="DataLoader worker ended: "):
        next(batches(samples, Order(5, 2, seed=0, first=0, steps=1), workers=1))


@pytest.mark.parametrize("raw", [False, True])
def test_a_batch_that_finds_no_room_in_shared_memory_is_an_error(raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    samples = augmented()
    samples.raw = raw
    with pytest.raises(RuntimeError, match=r"(?s)DataLoader worker.*No space left on device"):
        next(batches(samples, Order(5, 2, seed=0, first=0, steps=1), workers=1))


@pytest.mark.parametrize("error", [TypeError, MemoryError, KeyError])
def test_an_error_in_a_worker_leaves_no_process_behind(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise error("no picture")

    monkeypatch.setattr(Shapes, "__getitem__", broken)
    before = set(multiprocessing.active_children())
    gc.disable()  # at exit Python waits for processes before it looks for cycles
    try:
        with pytest.raises(error, match="no picture"):
            next(batches(augmented(), Order(5, 2, seed=0, first=0, steps=None), workers=2))
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


# PyTorch's iterator fails to end what it has not wholly made
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_that_could_not_all_be_started_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, ready = multiprocessing.process.BaseProcess.start, multiprocessing.Event()
    started: list[multiprocessing.process.BaseProcess] = []

    def one_alone(self: multiprocessing.process.BaseProcess) -> None:
        if started:
            assert ready.wait(60)
            raise OSError(errno.EMFILE, "Too many open files")
        started.append(self)
        begin(self)

    def tell(number: int) -> None:
        _start_worker(number)
        ready.set()

    monkeypatch.setattr("segmenter.training.data._start_worker", tell)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", one_alone)
    with pytest.raises(OSError, match="Too many open files"):
        next(batches(augmented(), Order(5, 2, seed=0, first=0, steps=None), workers=2))
    started[0].join(20)
    assert started[0].exitcode == -signal.SIGKILL


def test_seed_changes_augmentation() -> None:
    ((first, _), _), ((other_seed, _), _), ((later, _), _) = augmented(0)[0, 0], augmented(1)[0, 0], augmented(0)[5, 0]
    assert not torch.equal(first, other_seed)
    assert not torch.equal(first, later)


class Broken(Shapes):
    def __getitem__(self, index: int) -> Sample:
        if index == 3:
            raise ImageError("street.png: damaged; copy it again")
        return Sample(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8), "fine")


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_file_is_named_in_one_line(workers: int, tmp_path: Path) -> None:
    samples = Augmented(Broken("train", length=5), (32, 32), PRESETS["none"], HALF, 0)
    with pytest.raises(ImageError) as error:
        list(batches(samples, Order(5, 2, 0, 0, 6), workers))
    assert str(error.value) == "street.png: damaged; copy it again"


class Failing(Shapes):
    """Samples of which some are damaged; each image holds its own number."""

    def __init__(self, bad: set[int], length: int = 5) -> None:
        super().__init__("train", length)
        self.bad = bad

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise ImageError(f"{index}.png: damaged")
        return Sample(np.full((32, 32, 3), index, np.uint8), np.full((32, 32), index, np.uint8), str(index))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_skipped_named_once_and_the_same_after_a_resume(workers: int) -> None:
    samples = Augmented(Failing({3, 4}), (32, 32), PRESETS["none"], HALF, 0, skip_bad=True)
    notes: list[str] = []
    whole = [
        labels[:, 0, 0].tolist() for _, labels in batches(samples, Order(5, 2, 0, 0, 6), workers, note=notes.append)
    ]
    wanted = [[0 if index in (3, 4) else index for _, index in places] for places in Order(5, 2, 0, 0, 6)]
    assert whole == wanted
    assert sorted(notes) == ["skipped: 3.png: damaged", "skipped: 4.png: damaged"]
    later = [labels[:, 0, 0].tolist() for _, labels in batches(samples, Order(5, 2, 0, 4, 6), workers)]
    assert later == whole[4:]


def test_a_dataset_that_is_gone_is_not_skipped() -> None:
    for length in (5, 1000):
        samples = Augmented(
            Failing(set(range(length)), length), (32, 32), PRESETS["none"], HALF, 0, skip_bad=True, raw=True
        )
        with pytest.raises(DataError, match=rf"damaged \(and so are the {min(length, 100) - 1} samples after it\)"):
            list(batches(samples, Order(length, 2, 0, 0, 1), 0))
