"""segmenter_trt's sessions from many threads, over thousands of calls, and when a signal comes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmenter_engines.folder import FP32
from tests.small_engines import TINY, H, W, pictures

segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")
pytest.importorskip("openvino", reason="openvino is not installed")


def test_eight_threads_give_the_labels_of_one(tiny: Path) -> None:
    engine = segmenter_trt.Engine(tiny, threads=1)
    images = pictures(200, TINY, TINY, seed=8)
    serial = segmenter_trt.Session(engine).run(images)

    def all_of_them(_: int) -> np.ndarray:
        session = segmenter_trt.Session(engine)
        return np.stack([session.run(image) for image in images])

    with ThreadPoolExecutor(8) as pool:
        for labels in pool.map(all_of_them, range(8)):
            np.testing.assert_array_equal(labels, serial)


# in a process that has had no engine before, whose threads may still be where they were kept
_WATCHED = """
import os, sys
from contextlib import suppress
from concurrent.futures import ThreadPoolExecutor
import numpy as np
path, way, H, W = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if way == "python":
    from segmenter_engines.sessions import open_engine
    call = open_engine(path, "openvino", threads=1)
else:
    import segmenter_trt
    call = segmenter_trt.Session(segmenter_trt.Engine(path, threads=1)).run
images, seen = np.zeros((8, H, W, 3), np.uint8), set()
with ThreadPoolExecutor(1) as pool:
    calls = pool.submit(lambda: [call(images) for _ in range(20)])
    while not calls.done():
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it has ended
                seen.add(frozenset(os.sched_getaffinity(int(thread))))
    calls.result()
print(seen == {frozenset(os.sched_getaffinity(0))}, *map(sorted, seen))
"""


@pytest.mark.parametrize("way", ["python", "native"])
def test_fewer_threads_than_cores_are_kept_on_none_of_them(engine_folder: Path, way: str) -> None:
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("threads are not kept on cores here, or there is one, which every thread is on")
    command = [sys.executable, "-c", _WATCHED, str(engine_folder / FP32), way, str(H), str(W)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert told.startswith("True "), told


def test_ten_thousand_runs_keep_no_memory(tiny: Path) -> None:
    program = f"""
import numpy as np, resource, segmenter_trt
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
session = segmenter_trt.Session(segmenter_trt.Engine({str(tiny)!r}, threads=1))
image, out = np.zeros(({TINY}, {TINY}, 3), np.uint8), np.empty(({TINY}, {TINY}), np.uint8)
for _ in range(1000):
    session.run(image, out); session.run(image)
before = resident()
for _ in range(5000):
    session.run(image, out); session.run(image)
print(resident() - before)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) <= 1 << 20


class Stopped(Exception):  # noqa: N818 - raised by a signal's handler, as KeyboardInterrupt is
    pass


@contextmanager
def alarm() -> Iterator[None]:
    """A signal a twentieth of a second from now, whose handler raises Stopped."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
@pytest.mark.parametrize("way", ["run", "sliding_window"])
def test_control_c_stops_a_long_call(tiny: Path, way: str) -> None:
    session = segmenter_trt.Session(segmenter_trt.Engine(tiny, threads=1))
    count = 50_000
    images = np.zeros((count, TINY, TINY, 3), np.uint8)
    out = np.full((count, TINY, TINY), 99, np.uint8)
    tall = images.reshape(-1, TINY, 3)
    calls: dict[str, Callable[[], Any]] = {
        "run": lambda: session.run(images, out=out),
        "sliding_window": lambda: session.sliding_window(tall, window=TINY, out=out.reshape(-1, TINY)),
    }
    with pytest.raises(Stopped), alarm():
        calls[way]()
    assert (out[0] != 99).all()
    assert (out[-1] == 99).all()  # the handler was heard on the way, and not when all was done
    assert session.run(images[0]).shape == (TINY, TINY)
