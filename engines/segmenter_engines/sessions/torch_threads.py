"""PyTorch's number of threads, lowered while sessions copy, each in a thread of its own, and then as it was.

It belongs to the thread that sets it, and to all that have not asked for it yet: one that asks while another has
lowered it must not take that for what was there before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

_LOCK = Lock()
_before: list[int] = []  # the number that the first of those inside found, once for each of them


@contextmanager
def lowered(threads: int) -> Iterator[None]:
    """Within it, PyTorch computes in so many threads."""
    with _LOCK:
        found = torch.get_num_threads()
        torch.set_num_threads(threads)
        _before.append(_before[0] if _before else found)
    try:
        yield
    finally:
        with _LOCK:
            torch.set_num_threads(_before.pop())
