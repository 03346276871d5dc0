"""How many CPU cores this process may use: the one count that threads, workers and pools are made from."""

import os


def usable_cores() -> int:
    """Cores the system schedules this process on, at least 1; all of the machine's where it keeps no such list."""
    # macOS and Windows know no affinity of this kind
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
