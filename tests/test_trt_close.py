"""segmenter_trt's engines and sessions that are closed: what they held is gone at once, and every call says so."""

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trt_backend import H, W, write_plan

segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")

IMAGE = np.zeros((H, W, 3), np.uint8)

# of an engine: a thread that nobody waits for calls it again and again until the program has ended
DAEMON = """
import sys, threading, time
import numpy as np, segmenter_trt

engine = segmenter_trt.Engine(sys.argv[1])
image, tall = np.zeros((1, 4, 6, 3), np.uint8), np.zeros((4000, 4, 3), np.uint8)

def call():
    session = segmenter_trt.Session(engine)
    calls = {
        "run": lambda: session.run(image),
        "run_resized": lambda: session.run_resized(tall[None, :9]),
        "several": lambda: session.run(np.broadcast_to(image, (3000, 4, 6, 3)).copy()),
        "resize": lambda: segmenter_trt.resize(tall, 3000, 8, 1),
        "session": lambda: segmenter_trt.Session(engine),
    }
    while True:
        calls[sys.argv[2]]()

for _ in range(4):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.3)
print("ended")
"""


@pytest.fixture
def plan(backend_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGMENTER_TRT_BACKENDS", str(backend_folder))
    return write_plan(backend_folder)


@pytest.fixture
def alive(backend_folder: Path) -> Iterator[Any]:
    """Numbers of engines and sessions that the runtime holds, which are none after a test too."""
    runtime = ctypes.CDLL(str(backend_folder / "libsegmenter_trt_tensorrt.so"))
    yield lambda: (runtime.red_backends(), runtime.red_runners())
    assert (runtime.red_backends(), runtime.red_runners()) == (0, 0)


def test_with_gives_back_at_once(plan: Path, alive: Any) -> None:
    with segmenter_trt.Engine(plan) as engine, segmenter_trt.Session(engine) as session:
        assert session.run(IMAGE).shape == (H, W)
        assert alive() == (1, 1)
    assert alive() == (0, 0)  # though both names still hold their objects
    assert session.engine is engine
    assert repr(engine) == "<segmenter_trt.Engine, closed>"
    assert repr(session) == "<segmenter_trt.Session of <segmenter_trt.Engine, closed>, closed>"
    for closed in (session, engine):
        closed.close()


def test_with_gives_back_after_an_error_and_passes_it_on(plan: Path, alive: Any) -> None:
    with (
        pytest.raises(segmenter_trt.InputError),
        segmenter_trt.Engine(plan) as engine,
        segmenter_trt.Session(engine) as session,
    ):
        session.run(IMAGE[:1])
    assert alive() == (0, 0)


@pytest.mark.parametrize("call", ["run", "run_resized", "several", "resize", "session"])
def test_a_program_ends_while_a_thread_is_in_a_call(plan: Path, call: str) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", DAEMON, str(plan), call]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


def test_sessions_outlive_the_engine_they_are_of(plan: Path, alive: Any) -> None:
    with segmenter_trt.Engine(plan) as engine:
        session = segmenter_trt.Session(engine)
    assert alive() == (1, 1)
    np.testing.assert_array_equal(session.run(IMAGE), IMAGE[..., 0])
    with pytest.raises(segmenter_trt.RunError, match=r"^engine: is closed; open it again$"):
        segmenter_trt.Session(engine)
    session.close()
    assert alive() == (0, 0)


def test_every_call_of_what_is_closed_says_so(plan: Path, alive: Any) -> None:
    with segmenter_trt.Engine(plan) as engine, segmenter_trt.Session(engine) as session:
        pass
    wrong = IMAGE.astype(np.float64)  # which is not what is wrong now
    calls = (
        lambda: session.run(wrong),
        lambda: session.run_resized(wrong),
        lambda: session.sliding_window(wrong, window=H),
        lambda: session.masks(wrong),
        lambda: session.logits(wrong),
        lambda: session.run_async(wrong, wrong),
        session.describe,
        session.__enter__,
    )
    for call in calls:
        with pytest.raises(segmenter_trt.RunError, match=r"^session: is closed; open another one of its engine$"):
            call()
    for call in (engine.describe, lambda: engine.manifest, engine.__enter__):
        with pytest.raises(segmenter_trt.RunError, match=r"^engine: is closed; open it again$"):
            call()


def test_a_session_that_runs_is_not_closed_under_it(plan: Path, alive: Any) -> None:
    slow = IMAGE.copy()
    slow[0, 0, 1] = 30  # hundredths of a second, when it goes too
    engine = segmenter_trt.Engine(plan)
    session = segmenter_trt.Session(engine)
    labels: list[Any] = []
    thread = threading.Thread(target=lambda: labels.append(session.run(slow)))
    thread.start()
    refused: list[str] = []
    while thread.is_alive() and not refused:
        time.sleep(0.01)
        session.describe()  # which waits for no other call
        try:
            session.run(IMAGE)
        except segmenter_trt.RunError:
            with pytest.raises(segmenter_trt.RunError, match="in use by another call") as error:
                session.close()
            refused.append(str(error.value))
    thread.join()
    assert refused
    np.testing.assert_array_equal(labels[0], slow[..., 0])
    # closing lets other threads go on
    ticks: list[float] = []
    closing = threading.Thread(target=session.close)
    closing.start()
    while closing.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.01)
    closing.join()
    assert len(ticks) > 5
    assert alive() == (1, 0)
    engine.close()
