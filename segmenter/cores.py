"""How many CPU cores this process may use: the one count that threads, workers and pools are made from."""

import os
from pathlib import Path

_GROUPS, _MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # of Linux's control groups


def scheduled_cores() -> int:
    """Cores the system schedules this process on, at least 1; all of the machine's where it keeps no such list."""
    # macOS and Windows know no affinity of this kind
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def usable_cores() -> int:
    """As many of them as it is given time for, at least 1: containers are held to a part of all cores' time."""
    return min([scheduled_cores(), *_quotas()])


def _quotas() -> list[int]:
    """Cores' worth of time, rounded up, of each control group that holds this process to some (version 2 or 1)."""
    found = []
    for line in _read(_GROUPS).splitlines():
        # number:controllers:path, of version 2 with no controllers
        _, controllers, path = [*line.split(":", 2), "none", "none"][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _MOUNTED / "cpu" if controllers else _MOUNTED
        group = root / path.lstrip("/")
        # its groups above hold it too; within a container the path may be the host's, and the root alone is there
        for folder in (group, *(above for above in group.parents if above.is_relative_to(root))):
            for words in (
                _read(folder / "cpu.max").split(),
                (_read(folder / "cpu.cfs_quota_us") + _read(folder / "cpu.cfs_period_us")).split(),
            ):
                # no quota is "max" in the one, -1 in the other
                if len(words) == 2 and all(word.isdecimal() for word in words) and "0" not in words:
                    found.append(-(-int(words[0]) // int(words[1])))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
