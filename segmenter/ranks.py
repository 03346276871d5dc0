"""Processes that share one job, as torchrun starts them: who is who, sums over all, and each one's share of a dataset.

Without torchrun there is one process, and nothing here costs anything.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from segmenter.datasets import SegmentationDataset
from segmenter.datasets.sample import Sample, require_index
from segmenter.device import pick_device
from segmenter.errors import FAILED, ConfigError, SegmenterError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
_PATIENCE_S = 2.0  # for the others to say that they are still there


class LostRank(SegmenterError):  # noqa: N818 - it is lost
    """Another process of the job has ended before its time."""


class Ranks:
    """This process's place among those of the job: number `rank` of `count`, computing on `device`."""

    def __init__(self, device: str, rank: int = 0, count: int = 1, store: "Store | None" = None) -> None:
        self.device, self.rank, self.count, self.store = device, rank, count, store

    @property
    def first(self) -> bool:
        """Whether it is this one that writes and speaks."""
        return self.rank == 0

    def share(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """Every `count`-th sample of a dataset, so that each is in one process's share."""
        return dataset if self.count == 1 else EveryNth(dataset, self.rank, self.count)

    def sum(self, tensor: "Tensor") -> "Tensor":
        """The tensor, summed over all processes in place, on its own device.

        Raises LostRank when another process is gone, as everything here does that waits for others.
        """
        if self.count > 1:
            from torch.distributed import all_reduce

            with self.exchanging():
                all_reduce(tensor)
        return tensor

    def sum_counts(self, *counts: np.ndarray) -> None:
        """Sum integer arrays over all processes, in place: exact, so the order does not matter."""
        if self.count > 1:
            import torch

            for each in counts:
                each[...] = self.sum(torch.from_numpy(each.astype(np.int64))).numpy()

    def gathered(self, values: list[T]) -> list[T]:
        """All processes' values, one process's after another's."""
        if self.count == 1:
            return values
        from torch.distributed import all_gather_object

        lists: list[list[T]] = [[] for _ in range(self.count)]
        with self.exchanging():
            all_gather_object(lists, values)
        return [value for each in lists for value in each]

    def largest(self, *values: float) -> tuple[float, ...]:
        """Each of these numbers' largest value over all processes."""
        if self.count == 1:
            return values
        import torch
        from torch.distributed import ReduceOp, all_reduce

        together = torch.tensor(values, dtype=torch.float64)
        with self.exchanging():
            all_reduce(together, ReduceOp.MAX)
        return tuple(together.tolist())

    def wait(self) -> None:
        """Until every process is here."""
        self.largest(0.0)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Turn what PyTorch raises when another process is gone into LostRank."""
        import torch

        try:
            yield
        except RuntimeError as error:
            # gloo has no error of its own; NCCL's, and the store's, are of this class
            if self.count == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
                raise
            raise LostRank(
                f"{self._missing()} ended before its time, killed or out of memory unless it says otherwise above;"
                " the same command starts again"
            ) from error

    def _missing(self) -> str:
        """Who does not answer any more, by rank, process and machine; of several not all need have ended."""
        try:
            assert self.store is not None
            self.store.set(f"here/{self.rank}", "")
            time.sleep(_PATIENCE_S)
            gone = [rank for rank in range(self.count) if not self.store.check([f"here/{rank}"])]
            names = [f"rank {rank} of {self.count} ({self.store.get(f'who/{rank}').decode()})" for rank in gone]
        except RuntimeError:  # the store went with the process that kept it
            names = []
        if len(names) > 1:
            return f"{', '.join(names)} do not answer, and one of them at least"
        return names[0] if names else f"a process of the {self.count}"


class EveryNth:
    """Samples `first`, `first + step`, `first + 2 step`, ... of a dataset."""

    def __init__(self, dataset: SegmentationDataset, first: int, step: int) -> None:
        self.dataset, self.first, self.step = dataset, first, step
        self.classes, self.palette, self.ignore = dataset.classes, dataset.palette, dataset.ignore
        self.channels = dataset.channels

    def __len__(self) -> int:
        return len(range(self.first, len(self.dataset), self.step))

    def __getitem__(self, index: int) -> Sample:
        require_index(index, len(self))
        return self.dataset[self.first + index * self.step]


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes torchrun started, connected; this one alone where it did not.

    device: as of `segmenter.inference.pick_device`; of several GPUs each process takes the one of its place on its
    machine. An error that several processes raise is let through in the first and ends the others in silence.
    Raises ConfigError for a device that is not here, or one GPU for many processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        picked = pick_device(device)
        _make_current(picked)
        yield Ranks(picked)
        return
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://"))
    store = PrefixStore(f"segmenter/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    ranks = Ranks(device, rank, count, store)
    try:
        ranks.device = _own_device(device)
        store.set(f"who/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        on_gpu = ranks.device.startswith("cuda")
        _make_current(ranks.device)
        # what is small and on the CPU never waits for a GPU
        init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=count)
        yield ranks
    except SegmenterError:
        if not _first_to_fail(ranks, store):
            sys.exit(FAILED)
        raise
    destroy_process_group()


def _first_to_fail(ranks: Ranks, store: "Store") -> bool:
    """Whether no other process has ended with an error yet; the one that may keep the store waits for the others."""
    from torch.distributed import destroy_process_group, is_initialized

    try:
        first = store.add("errors", 1) == 1
        if ranks.first:
            if is_initialized() and ranks.device == "cpu":  # a GPU would wait for what will never come
                destroy_process_group()
            end = time.monotonic() + _PATIENCE_S
            while store.add("errors", 0) < ranks.count and time.monotonic() < end:
                time.sleep(0.05)
    except RuntimeError:  # the store is gone, and so is who kept it
        return True
    return first


def _make_current(device: str) -> None:
    """Have a GPU named by its number be the one that PyTorch means where it is told none.

    It asks that one whether it computes in bf16, and pins memory for it.
    """
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)


def _own_device(name: str) -> str:
    picked = pick_device(name)
    if not picked.startswith("cuda"):
        return picked
    if picked != "cuda":
        raise ConfigError(f"--device {name}: every process would take it; pass --device cuda, and each takes its own")
    return pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
