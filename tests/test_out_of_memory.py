"""Where memory runs out there is an error, and never the labels of another image."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_engines import RANGED

pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")

# Memory of which nothing is kept for later: a large array asks the system, which may refuse, and is gone when freed, so
# that whoever still writes there ends the process.
PLAIN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
PREPARED = """
import resource
import numpy as np

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def limited(to, call, *arguments):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (to, hard))
    try:
        return call(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

def told(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return "labelled"

def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
"""
OPEN = {  # what makes the function that labels
    "segmenter_trt": """
import segmenter_trt
label = segmenter_trt.Session(segmenter_trt.Engine(PATH, threads=1)).run
""",
    "segmenter_engines": """
from segmenter_engines import open_session
label = open_session(PATH, "openvino", threads=1)
""",
}


def printed(kind: str, path: Path, program: str, **variables: str) -> list[str]:
    """What a program prints in a process of its own, as a limit on memory is the process's."""
    code = PREPARED + OPEN[kind].replace("PATH", repr(str(path))) + program
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.splitlines()


@pytest.mark.parametrize("kind", OPEN)
def test_a_call_that_failed_is_no_earlier_calls_labels(ranged_folder: Path, kind: str) -> None:
    # with one thread OpenVINO 2026.4's own `infer` fails without a word, here and in the calls that follow
    starved, after = printed(
        kind,
        ranged_folder / RANGED,
        "label(picture(0, 160, 200))\n"
        "image = picture(1, 96, 96)\n"
        "print(limited(held() - (32 << 20), told, label, image))\n"
        "print(told(label, picture(1, 160, 200)))\n",
    )
    assert "Error" in starved.partition(" ")[0]
    assert after.endswith(f"open the {'engine' if kind == 'segmenter_trt' else 'session'} again")


def test_a_batch_too_large_for_memory_leaves_the_session_as_it_was(ranged_folder: Path) -> None:
    same, failed, again, other = printed(
        "segmenter_trt",
        ranged_folder / RANGED,
        "image, batch = picture(0, 160, 200), picture(1, 4 * 160, 200).reshape(4, 160, 200, 3)\n"
        "first = label(image).copy()\n"
        "print((label(image) == first).all())\n"
        "print(limited(held() + (1 << 20), told, label, batch))\n"
        "print((label(image) == first).all())\n"
        "print(told(label, batch))\n",
        **PLAIN,
    )
    assert (same, again, other) == ("True", "True", "labelled")
    assert failed.startswith("RunError")
