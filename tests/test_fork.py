"""A child of fork() has none of its parent's threads: it is told, and lets go of engines without waiting for them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segmenter_engines.folder import FP32

for module in ("openvino", "segmenter_trt"):
    pytest.importorskip(module, reason=f"{module} is not installed")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# the child's part follows; a child that waits for ever is ended by its alarm
PARENT = """
import os, signal, sys
import numpy as np, segmenter_trt
from segmenter.errors import Unavailable
from segmenter_engines.sessions import open_engine

path = sys.argv[1]

def native():
    return segmenter_trt.Session(segmenter_trt.Engine(path, threads=2))

def python():
    return open_engine(path, "openvino", threads=2)

image = np.zeros((56, 72, 3), np.uint8)
BEFORE
sys.stdout.flush()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
"""


def told(engine_folder: Path, before: str, after: str) -> list[str]:
    """The lines that a child prints; it ends as programs do."""
    program = PARENT.replace("BEFORE", before) + after
    command = [sys.executable, "-c", program, str(engine_folder / FP32)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{signal.Signals(-done.returncode).name if done.returncode < 0 else ''} {done.stderr}"
    return done.stdout.splitlines()


@pytest.mark.parametrize("way", ["native", "python"])
def test_an_engine_opened_before_a_fork_is_the_last(engine_folder: Path, way: str) -> None:
    before = f"opened = {way}(); opened.close(); del opened"
    after = f"""
try:
    {way}()
except (segmenter_trt.Unavailable, Unavailable) as error:
    print(error)
"""
    (line,) = told(engine_folder, before, after)
    assert line.startswith("engine openvino: this process was forked from one that had opened OpenVINO")
    assert line.endswith("open engines after the fork alone, or start processes by spawn")


def test_engines_opened_after_a_fork_work(engine_folder: Path) -> None:
    assert told(engine_folder, "", "print(native().run(image).shape, python()(image).shape)") == ["(56, 72) (56, 72)"]


def test_a_lock_held_by_another_thread_at_the_fork_is_not_waited_for(engine_folder: Path) -> None:
    before = """
import threading
from segmenter_engines.sessions import openvino
python().close()
held = threading.Event()
def hold():
    with openvino._lock:
        held.set()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
"""
    after = """
try:
    python()
except Unavailable as error:
    print(error)
"""
    (line,) = told(engine_folder, before, after)
    assert "this process was forked from " in line


@pytest.mark.parametrize("way", ["native", "python"])
def test_what_a_child_inherits_computes_nothing(engine_folder: Path, way: str) -> None:
    before = f"session = {way}(); call = session.run if {way} is native else session; call(image)"
    after = """
try:
    call(image)
except (segmenter_trt.RunError, Unavailable) as error:
    print(error)
"""
    (line,) = told(engine_folder, before, after)
    assert "this process was forked from " in line


@pytest.mark.parametrize("way", ["native", "python"])
@pytest.mark.parametrize("end", ["session = None", "session.close()", "sys.exit(0)"])
def test_what_a_child_inherits_goes_without_waiting(engine_folder: Path, way: str, end: str) -> None:
    before = f"session = {way}(); session.run(image)" if way == "native" else f"session = {way}(); session(image)"
    assert told(engine_folder, before, f"print('child'); {end}") == ["child"]
