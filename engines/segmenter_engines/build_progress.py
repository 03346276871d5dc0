"""A build that can be watched and stopped: TensorRT's progress monitor, and Ctrl-C."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Result = TypeVar("Result")


class Watcher(Protocol):
    """Told of every phase of a build, from whichever thread the builder works in."""

    def begin(self, phase: str, steps: int) -> None: ...
    def step(self, phase: str, step: int) -> None: ...
    def end(self, phase: str) -> None: ...


class Bar:
    """One line on a terminal: the phase a build is in and how far it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._task = progress.add_task("starting", total=None)
        self._phases: list[tuple[str, int]] = []

    def begin(self, phase: str, steps: int) -> None:
        with self._lock:
            self._phases.append((phase, steps))
            self._show(0)

    def step(self, phase: str, step: int) -> None:
        with self._lock:
            if self._phases and self._phases[-1][0] == phase:
                self._progress.update(self._task, completed=step + 1)

    def end(self, phase: str) -> None:
        with self._lock:
            self._phases = [known for known in self._phases if known[0] != phase]
            self._show(0)

    def _show(self, done: int) -> None:
        phase, steps = self._phases[-1] if self._phases else ("finishing", 0)
        self._progress.update(self._task, description=phase, total=steps or None, completed=done)


def progress_bar() -> Progress:
    """On stderr, and only where that is a terminal; gone when the build is."""
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def monitor(trt: Any, watcher: Watcher | None, stop: threading.Event) -> Any:
    """TensorRT's IProgressMonitor that tells `watcher` and ends the build once `stop` is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if watcher is not None:
                watcher.begin(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if watcher is not None:
                watcher.step(phase_name, step)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            if watcher is not None:
                watcher.end(phase_name)

    return Monitor()


def run_stoppable(work: Callable[[], Result], stop: threading.Event) -> Result:
    """Call `work` in a thread of its own; Ctrl-C sets `stop`, waits for `work` to notice, and goes on as ever.

    In the calling thread the interpreter would not get to see Ctrl-C: the builder's callbacks swallow exceptions.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            # in turns: a wait without end is not woken by a signal that another thread gets
            while not future.done():
                wait([future], timeout=0.2)
        except KeyboardInterrupt:
            stop.set()
            raise  # leaving the pool waits for the work to end
        return future.result()
