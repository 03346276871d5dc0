"""Launches specialised as on a GPU, in a process of its own: this one may be interpreting kernels."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_launch_compiles_at_segmenters_sizes_and_at_sizes_of_1() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.kernels.pretended_gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-1000:]
    assert done.stdout.endswith(" launches, 0 failed\n")
