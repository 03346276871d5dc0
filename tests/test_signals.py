"""A signal reaches a program's handler after its engines are closed, in whichever order they were opened and closed."""

import itertools
import signal
import subprocess
import sys

import pytest

from segmenter_engines.folder import FP32

# OpenVINO's cores move the stack on which a thread's handlers run: a stack that is gone ends the process
PROGRAM = """
import os, signal, sys, threading

from segmenter_engines import open_session
import segmenter_trt

def python(path):
    session = open_session(path, "openvino", threads=1)
    return session.close

def native(path):
    opened = [segmenter_trt.Session(segmenter_trt.Engine(path, threads=1))]
    return opened.clear

path, *order = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
closes = [{"python": python, "native": native}[name](path) for name in order]
for close in closes:  # the first first: not as a stack would
    close()
del closes, close
signal.raise_signal(signal.SIGTERM)
print("alive")
"""


@pytest.mark.parametrize("order", list(itertools.product(["python", "native"], repeat=2)), ids="-".join)
def test_a_signal_after_engines_are_closed_out_of_order(engine_folder, order):
    for module in ("openvino", "segmenter_trt"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    command = [sys.executable, "-c", PROGRAM, str(engine_folder / FP32), *order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{signal.Signals(-done.returncode).name if done.returncode < 0 else ''} {done.stderr}"
    assert done.stdout.split() == ["heard", "alive"]
