"""The core count: the system's list where there is one, the machine's count elsewhere."""

import os

import pytest

from segmenter.cores import usable_cores
from segmenter.training.data import spare_workers


def test_the_systems_list_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 9}, raising=False)
    assert usable_cores() == 3
    assert spare_workers() == 2


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for processes, workers in ((1, 8), (4, 3), (8, 1), (32, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert spare_workers() == workers


@pytest.mark.parametrize(("count", "wanted", "workers"), [(6, 6, 5), (1, 1, 1), (64, 64, 8), (None, 1, 1)])
def test_systems_without_such_a_list(
    count: int | None, wanted: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cores() == wanted
    assert spare_workers() == workers
