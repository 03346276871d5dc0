"""What drives the GPU: NVIDIA's own bindings on a driver of host memory, stand-ins for PyTorch's and PyCUDA's calls."""

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segmenter.errors import EngineError, Unavailable
from segmenter_engines.sessions import device as devices
from segmenter_engines.sessions.device import LEGACY, dlpack, open_device, require_driver
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


class TorchCuda:
    """`torch.cuda` whose memory is the host's; remembers what it was asked."""

    def __init__(self):
        self.asked, self.current, self.capture_fails = [], [], False

    def is_available(self):
        return True

    def current_device(self):
        return 0

    def get_device_name(self, index):
        return "Fake H100"

    def get_device_capability(self, index):
        return (9, 0)

    def mem_get_info(self, index):
        return (1, 2)

    @contextmanager
    def device(self, index):
        yield

    @contextmanager
    def stream(self, stream):
        self.current.append(stream)
        try:
            yield
        finally:
            self.current.pop()

    def Stream(self, device):
        return self.ExternalStream(0x1000, device)

    def ExternalStream(self, handle, device):
        return SimpleNamespace(
            cuda_stream=handle,
            wait_event=lambda event: self.asked.append(("wait", handle, event.on)),
            synchronize=lambda: self.asked.append(("synchronize", handle)),
        )

    def default_stream(self, device):
        return SimpleNamespace(cuda_stream=0, wait_event=lambda event: self.asked.append(("wait", 0, event.on)))

    def Event(self):
        event = SimpleNamespace(synchronize=lambda: self.asked.append(("finish", event.on)), query=lambda: True)
        event.record = lambda stream: setattr(event, "on", stream.cuda_stream)
        return event

    def CUDAGraph(self):
        def end():
            self.asked.append("ends")
            if self.capture_fails:
                raise RuntimeError("the capture is broken")

        return SimpleNamespace(
            capture_begin=lambda capture_error_mode: self.asked.append(("captures", capture_error_mode)),
            capture_end=end,
            replay=lambda: self.asked.append(("replays", self.current[-1].cuda_stream)),
        )


def test_pytorch_is_asked_in_its_own_words(monkeypatch):
    module = importlib.import_module("segmenter_engines.sessions.device.torch")
    cuda = TorchCuda()

    def empty(nbytes, dtype, device=None, pin_memory=False):
        assert pin_memory or cuda.current  # the allocator must know the stream
        return torch.full((nbytes,), 7, dtype=dtype)

    fake = SimpleNamespace(
        cuda=cuda, empty=empty, uint8=torch.uint8, device=torch.device, version=torch.version, __version__="2.99"
    )
    fake.as_tensor = lambda probe: SimpleNamespace(device=torch.device("cuda", 0))
    fake.Tensor = torch.Tensor
    monkeypatch.setattr(module, "torch", fake)
    device = open_device("tensorrt", ["torch"])
    assert (device.name, device.gpu, device.capability) == ("torch 2.99", "Fake H100", (9, 0))
    with device.current():
        stream = device.stream()
        memory, host = device.allocate(8, stream), device.pinned(8)
        assert memory.pointer == memory.native.data_ptr()
        host.array[:] = range(8)
        device.copy(memory, host, 6, stream)
        assert memory.native.tolist() == [0, 1, 2, 3, 4, 5, 7, 7]
        event = device.record(stream)
        device.wait(device.foreign(0), event)
        device.wait(device.foreign(99), event)
        device.finish(event)
        assert device.passed(event)
        launch = device.capture(stream, lambda: cuda.asked.append(("enqueues", cuda.current[-1].cuda_stream)))
        launch(device.foreign(55))
        cuda.capture_fails = True
        with pytest.raises(ZeroDivisionError):
            device.capture(stream, lambda: 1 / 0)
        assert cuda.current == []
        with pytest.raises(RuntimeError, match="the capture is broken"):
            device.capture(stream, lambda: None)
        assert device.memory() == (1, 2)
        assert device.owner(memory.pointer) == 0
    begins = ("captures", "thread_local")
    assert cuda.asked == [
        *(("wait", 0, 0x1000), ("wait", 99, 0x1000), ("finish", 0x1000)),
        *(begins, ("enqueues", 0x1000), "ends", ("replays", 55)),
        *(begins, "ends", begins, "ends"),
    ]
    memory.free()
    memory.free()


class PyCudaError(Exception):
    pass


class PyCuda:
    """`pycuda.driver` on host memory, as its wrapper declares it."""

    Error = PyCudaError

    def __init__(self):
        self.asked, self.contexts, self.sizes = [], [], {}
        outer = self

        class Context:
            def push(self):
                outer.contexts.append(self)

            @staticmethod
            def pop():
                outer.contexts.pop()

            @staticmethod
            def get_current():
                return outer.contexts[-1] if outer.contexts else None

            @staticmethod
            def get_device():
                return Device(1)

            @staticmethod
            def synchronize():
                outer.asked.append("the host waits for all")

        class Device:
            def __init__(self, index):
                self.index = index

            @staticmethod
            def count():
                return 2

            def name(self):
                return "Fake GPU"

            def compute_capability(self):
                return (8, 6)

            def pci_bus_id(self):
                return f"0000:0{self.index}:00.0"

            def retain_primary_context(self):
                outer.asked.append(f"primary of {self.index}")
                return Context()

        class Stream:
            def __init__(self, flags):
                self.handle = 0x2000

            def wait_for_event(self, event):
                outer.asked.append("the stream waits")

            def synchronize(self):
                outer.asked.append("the host waits for the stream")

        class Event:
            def __init__(self, flags):
                assert flags == 2

            def record(self, stream=None):
                outer.asked.append(f"records on {stream and stream.handle}")
                return self

            def synchronize(self):
                outer.asked.append("the host waits for the event")

            def query(self):
                return True

        class DeviceAllocation:
            def __init__(self, nbytes):
                self.array = np.zeros(nbytes, np.uint8)

            def __int__(self):
                return self.array.ctypes.data

            def free(self):
                outer.asked.append("freed")

        self.Context, self.Device, self.Stream, self.Event = Context, Device, Stream, Event
        self.mem_alloc = DeviceAllocation
        self.event_flags = SimpleNamespace(DISABLE_TIMING=2)

    def init(self):
        pass

    def get_driver_version(self):
        return 12080

    def mem_get_info(self):
        return (3, 4)

    def mem_get_address_range(self, pointer):
        if pointer < 4096:
            raise PyCudaError("cuMemGetAddressRange failed: not found")

    def pagelocked_empty(self, shape, dtype):
        return np.zeros(shape, dtype)

    def memcpy_htod_async(self, dest, src, stream=None):
        dest.array[: src.nbytes] = src

    def memcpy_dtoh_async(self, dest, src, stream=None):
        dest[:] = src.array[: dest.nbytes]

    def memcpy_dtod_async(self, dest, src, size, stream=None):
        dest.array[:size] = src.array[:size]


@pytest.mark.parametrize("current", [True, False])
def test_pycuda_is_asked_in_its_own_words(monkeypatch, current):
    pycuda = PyCuda()
    if current:
        pycuda.Context().push()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(VERSION_TEXT="2026.1", driver=pycuda))
    monkeypatch.delitem(sys.modules, "segmenter_engines.sessions.device.pycuda", raising=False)
    device = open_device("tensorrt", ["pycuda"])
    monkeypatch.delitem(sys.modules, "segmenter_engines.sessions.device.pycuda")
    assert (device.name, device.gpu, device.capability) == ("pycuda 2026.1", "Fake GPU", (8, 6))
    assert (device.index, device.driver) == (1, "CUDA 12.8")
    with device.current():
        stream = device.stream()
        memory, other, host = device.allocate(8, stream), device.allocate(8, stream), device.pinned(8)
        host.array[:] = range(8)
        device.copy(memory, host, 5, stream)
        device.copy(other, memory, 8, stream)
        host.array[:] = 9
        device.copy(host, other, 6, stream)
        assert host.array.tolist() == [0, 1, 2, 3, 4, 0, 9, 9]
        assert (device.owner(memory.pointer), device.owner(16)) == (1, None)
        assert device.memory() == (3, 4)
        pycuda.asked.clear()
        event = device.record(stream)
        device.wait(stream, event)
        assert device.passed(event)
        assert pycuda.asked == ["records on 8192", "the stream waits"]
        # streams of other libraries it knows by number only
        pycuda.asked.clear()
        foreign = device.foreign(99)
        device.wait(foreign, device.record(foreign))
        device.synchronize(foreign)
        device.record(device.foreign(0))
        assert pycuda.asked == [
            *("the host waits for all", "records on None", "the host waits for the event"),
            *("the host waits for all", "records on None"),
        ]
        assert device.foreign(stream.native).native is stream.native
        with pytest.raises(EngineError, match="PyCUDA makes no CUDA graphs"):
            device.capture(stream, lambda: None)
    memory.free()
    assert pycuda.asked[-1] == "freed"
    assert len(pycuda.contexts) == current


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_capsules_are_read_and_made_as_numpy_and_pytorch_do(dtype):
    values = np.arange(24).astype(dtype).reshape(2, 3, 4)
    view = dlpack.read(values.__dlpack__())
    assert (view.pointer, view.shape, view.dtype) == (values.ctypes.data, values.shape, values.dtype)
    assert view.contiguous
    assert not dlpack.read(values.transpose(0, 2, 1).__dlpack__()).contiguous
    assert not dlpack.read(values[:, :, ::2].__dlpack__()).contiguous
    tensor = torch.from_numpy(values)[1:]
    assert dlpack.read(tensor.__dlpack__()).pointer == values[1:].ctypes.data
    owners = []

    class Owner:
        def __del__(self):
            owners.append("gone")

    class Shared:
        def __dlpack_device__(self):
            return (1, 0)

        def __dlpack__(self, **options):
            return dlpack.make(values.ctypes.data, values.shape, values.dtype, (1, 0), Owner())

    for take in (np.from_dlpack, torch.from_dlpack):
        taken = take(Shared())
        assert np.array_equal(np.asarray(taken), values)
        assert owners == []
        del taken
        assert owners == ["gone"]
        owners.clear()
    capsule = Shared().__dlpack__()
    del capsule  # that nobody took
    assert owners == ["gone"]
    assert dlpack._MADE == {}


def test_elements_without_a_name_in_numpy_are_refused():
    with pytest.raises(ValueError, match=r"elements of DLPack type \(4, 16, 1\)"):
        dlpack.read(torch.zeros(3, dtype=torch.bfloat16).__dlpack__())


def test_the_structures_are_those_of_the_header():
    # offsets of dlpack.h on a machine with 64-bit pointers
    fields = {name: getattr(dlpack._Tensor, name).offset for name, _ in dlpack._Tensor._fields_}
    assert fields == {
        **{"data": 0, "device_type": 8, "device_index": 12, "ndim": 16, "code": 20, "bits": 21, "lanes": 22},
        **{"shape": 24, "strides": 32, "byte_offset": 40},
    }
    assert (ctypes.sizeof(dlpack._Tensor), ctypes.sizeof(dlpack._Managed)) == (48, 64)
