"""One engine in a process of its own: its memory is its own, its crash is its own, and it measures when told to.

The parent talks to it over a socket; what the engine's libraries print goes to a log that is quoted only when it dies.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from segmenter.errors import EngineError, SegmenterError
from segmenter_bench.engines import Engine, Entry, open_entry
from segmenter_bench.machine import energy_meter, forget_peak_memory, keeping_memory, peak_memory_bytes
from segmenter_bench.timing import Burst, burst
from segmenter_engines.manifest import PIXELS

if TYPE_CHECKING:
    from segmenter_engines import Session

# every runtime used here reads one of these before it starts its threads
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker:
    """The parent's end. Every method raises EngineError, in one line, when the engine refuses, dies or is too slow."""

    def __init__(self, entry: Entry, folder: Path, threads: int, timeout_s: float = 900.0) -> None:
        """Start a process and open the engine of `entry` on `folder` in it; `timeout_s` limits every answer."""
        self.entry, self.timeout_s = entry, timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "segmenter_bench.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=keeping_memory(os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._connection = Connection(ours.detach())
        try:
            self.facts: dict[str, Any] = self._ask("open", entry, folder, threads)
        except BaseException:
            self.close()
            raise

    def labels(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB [B, H, W, 3] -> labels [B, H, W]."""
        labels: np.ndarray = self._ask("labels", images)
        return labels

    def prepare(self, images: np.ndarray, region: str, warmup: int) -> None:
        """Make `images` what `burst` runs on: forget the memory peak so far, then make `warmup` untimed calls."""
        self._ask("prepare", images, region, warmup)

    def burst(self, seconds: float, min_calls: int) -> Burst:
        """Time the calls that fit into `seconds`, after one untimed call."""
        answer: Burst = self._ask("burst", seconds, min_calls)
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

    def memory(self) -> int:
        """Peak resident bytes of the process since `prepare`."""
        return int(self._ask("memory"))

    def close(self) -> None:
        """End the process; what it holds is given back."""
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _ask(self, question: str, *arguments: Any) -> Any:
        try:
            self._connection.send((question, arguments))
            if not self._connection.poll(self.timeout_s):
                self._process.kill()
                raise EngineError(
                    f"{self.entry.name}: no answer to {question!r} within {self.timeout_s:.0f} s; stopped"
                )
            verdict, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineError(f"{self.entry.name}: {self._obituary()}") from error
        if verdict == "error":
            raise EngineError(answer)
        return answer

    def _obituary(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its process closed the connection and did not end"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing in its log")
        return f"its process {how}: {last}"


class _Served:
    """The child's end: one method a question."""

    def __init__(self) -> None:
        self.engine: Engine
        self.timed: Callable[[], object]
        self.meter: Callable[[], float] | None = None

    def open(self, entry: Entry, folder: Path, threads: int) -> dict[str, Any]:
        start = time.perf_counter()
        self.engine = open_entry(entry, folder, threads)
        describe = self.engine.describe()
        # GPUs that only wait while the CPU works would say nothing of an engine
        self.meter = energy_meter() if describe.get("device", "cpu") != "cpu" else None
        facts = {
            "seconds": time.perf_counter() - start,
            "memory_bytes": peak_memory_bytes(),
            "describe": describe,
            "logits": hasattr(self.engine, "logits"),
        }
        return facts | {"resident_bytes": peak_memory_bytes() if forget_peak_memory() else None}

    def labels(self, images: np.ndarray) -> np.ndarray:
        return np.array(self.engine(images))

    def prepare(self, images: np.ndarray, region: str, warmup: int) -> None:
        if region == "labels":
            self.timed = lambda: self.engine(images)
        elif region == "logits":
            self.timed = lambda: cast("Session", self.engine).logits(images).argmax(axis=1)
        else:
            self.timed = self._network(images)
        forget_peak_memory()
        for _ in range(warmup):
            self.timed()

    def burst(self, seconds: float, min_calls: int) -> Burst:
        return burst(self.timed, seconds, min_calls, meter=self.meter)

    def memory(self) -> int:
        return peak_memory_bytes()

    def _network(self, images: np.ndarray) -> Callable[[], object]:
        if self.engine.describe().get("input") == PIXELS:
            return lambda: self.engine.masks(images)
        # any normalised values do: only the time is looked at
        x = np.ascontiguousarray((images.astype(np.float32) / 127.5 - 1.0).transpose(0, 3, 1, 2))
        return lambda: self.engine.masks(x)


def serve(connection: Connection) -> None:
    """Answer questions until the parent hangs up."""
    served = _Served()
    while True:
        try:
            question, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = ("ok", getattr(served, question)(*arguments))
        except SegmenterError as error:
            answer = ("error", " ".join(str(error).split()))
        except Exception as error:
            # whatever a runtime raises is this engine's failure, not the bench's
            traceback.print_exc()
            answer = ("error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        connection.send(answer)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
