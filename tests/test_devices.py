"""What drives the GPU: NVIDIA's own bindings on a driver of host memory, and why nothing else does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from segmenter.errors import EngineError, Unavailable
from segmenter_engines.sessions import device as devices
from segmenter_engines.sessions.device import LEGACY, open_device, require_driver
from segmenter_engines.sessions.device.interface import handle_of

HERE = Path(__file__).parent


def test_nvidias_own_bindings_drive_a_session(tmp_path):
    pytest.importorskip("cuda.bindings", reason="cuda-python is not installed")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler to make the driver with")
    library, source = tmp_path / "libcuda.so.1", HERE / "fake_libcuda.cc"
    soname = "-Wl,-soname,libcuda.so.1"
    command = [compiler, "-O1", "-std=c++17", "-shared", "-fPIC", soname, "-o", library, source]
    subprocess.run(command, check=True)
    run = subprocess.run(
        [sys.executable, "-m", "tests.cuda_python_case", tmp_path],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stderr == ""
    found, at_exit = map(json.loads, run.stdout.splitlines())
    assert found["labels"] == [True] * 3
    assert found["streamed"]
    assert found["on_device"]
    assert found["handed_on"]
    assert found["capture"].endswith("operation not permitted when stream is capturing")
    assert found["dlpack_device"] == [2, 0]
    assert found["device_library"] == "cuda-python"
    assert (found["device"], found["driver"], found["compute_capability"]) == ("Fake H100", "CUDA 13.0", "9.0")
    assert found["graphs"] == [[1, 3, 40, 56], [3, 3, 40, 56]]
    assert found["closed"].pop("python") == []
    assert set(found["closed"].values()) == {0}
    # a process that ends takes its streams along, and what only waits for nothing
    assert at_exit["python"] == []
    memory = ("device", "host", "graphs", "executables", "faults", "contexts")
    assert [at_exit[kind] for kind in memory] == [0] * len(memory)


def test_without_a_device_every_library_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "segmenter_engines.sessions.device.pycuda", raising=False)
    told = rf"^engine tensorrt: no CUDA device can be used: torch {torch.__version__.replace('+', '.')} has no CUDA;"
    told += r" pycuda is not installed; cuda-python.*; install PyTorch's CUDA build, or pip install"
    if torch.version.cuda:
        told = told.replace(f"torch {torch.__version__.replace('+', '.')} has no CUDA", "torch sees no CUDA device")
    with pytest.raises(Unavailable, match=told) as caught:
        open_device("tensorrt")
    assert "\n" not in str(caught.value)


def test_a_library_nobody_knows_is_named():
    with pytest.raises(EngineError, match="library 'opencl' drives no GPU here; choose of torch, pycuda, cuda-python"):
        open_device("tensorrt", ["opencl"])


def test_without_a_driver_nothing_is_imported(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    with pytest.raises(Unavailable, match=r"engine tensorrt-rtx: no NVIDIA driver here \(libcuda\.so\.1 not found\)"):
        require_driver("tensorrt-rtx")


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (0, LEGACY),
        (77, 77),
        (SimpleNamespace(cuda_stream=5), 5),
        (SimpleNamespace(ptr=6), 6),
        (SimpleNamespace(handle=7), 7),
        (SimpleNamespace(__cuda_stream__=lambda: (0, 8)), 8),
        (SimpleNamespace(__cuda_stream__=(0, 9)), 9),
    ],
)
def test_streams_of_any_library(stream, handle):
    assert handle_of(stream) == handle
