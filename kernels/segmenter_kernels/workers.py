"""Processes that try one job each at a time: what one job kills, hangs or spoils is lost alone."""

import concurrent.futures
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import torch

MOST = 16
TIMEOUT_S = 120.0  # of one job, the start of its process included: kernels that wait for each other wait for ever
Answer = TypeVar("Answer")


class Workers:
    """A job's process is replaced when the job killed it, spoiled it (as CUDA never recovers) or gave no answer."""

    def __init__(self, count: int, timeout_s: float = TIMEOUT_S) -> None:
        self._threads, self._timeout_s = ThreadPoolExecutor(count), timeout_s
        self._free: SimpleQueue[_Process] = SimpleQueue()
        for _ in range(count):
            self._free.put(_Process())

    def map(self, function: Callable[[Any], tuple[Answer, bool]], jobs: Iterable[Any]) -> Iterator[Answer | str]:
        """What `function` answers to each job, in order; a string says why it did not.

        It also says whether its process can go on.
        """
        return self._threads.map(partial(self._try, function), jobs)

    def _try(self, function: Callable[[Any], tuple[Answer, bool]], job: Any) -> Answer | str:
        process, usable = self._free.get(), True
        answer: Answer | str
        try:
            answer, usable = process.pool.submit(function, job).result(self._timeout_s)
        except BrokenProcessPool:
            answer, usable = "its process died", False
        except concurrent.futures.TimeoutError:
            answer, usable = f"no answer within {self._timeout_s:.0f} s", False
            process.kill()
        except Exception as error:  # of the job itself: out of memory, say
            answer, usable = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", False
        finally:
            if not usable:
                process.pool.shutdown(wait=False)
                process = _Process()
            self._free.put(process)
        return answer

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._free.empty():
            self._free.get().pool.shutdown()


class _Process:
    def __init__(self) -> None:
        # spawned: a forked process cannot use CUDA; it starts with its first job
        self.pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._pid: Future[int] = self.pool.submit(os.getpid)

    def kill(self) -> None:
        """End it at once, for it may never end by itself; one that never began has nothing to end."""
        with suppress(BrokenProcessPool, ProcessLookupError, concurrent.futures.TimeoutError):
            os.kill(self._pid.result(0), signal.SIGKILL)


def unspoiled() -> bool:
    """Whether CUDA still works in this process after something failed in it."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
