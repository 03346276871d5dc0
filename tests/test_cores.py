"""The core count: the system's list where there is one, the machine's count elsewhere."""

import os
from pathlib import Path

import pytest

from segmenter import cores
from segmenter.cores import usable_cores
from segmenter.training.data import spare_workers


@pytest.fixture(autouse=True)
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no control groups, but for those that a test writes."""
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "self")
    monkeypatch.setattr(cores, "_MOUNTED", tmp_path / "mounted")
    return tmp_path


@pytest.mark.parametrize(
    ("lines", "files", "wanted"),
    [
        # as in a container of version 2: its own group is the root
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "5000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {"cpu.max": "2000000 100000"}, 16),
        # a group within others: the narrowest holds
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "400000 100000"}, 3),
        # version 1, beside an empty 2
        ("4:memory:/a\n3:cpuacct,cpu:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "250000", "a/cpu.max": "1 1"}, 3),
        ("3:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1"}, 16),
        # and there the path of a container may be the host's
        ("3:cpu:/docker/1", {"cpu/cpu.cfs_quota_us": "400000"}, 4),
        ("2:cpuset:/a", {"cpu.max": "100000 100000"}, 16),
        ("no group", {"cpu.max": "100000 100000"}, 16),
    ],
)
def test_a_containers_quota_counts(
    lines: str, files: dict[str, str], wanted: int, groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    (groups / "self").write_text(lines + "\n")
    for name, text in files.items():
        path = groups / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        if path.name == "cpu.cfs_quota_us":
            path.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == wanted


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
