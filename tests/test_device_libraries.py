"""PyTorch and PyCUDA as what drives the GPU, each a stand-in that remembers what it was asked."""

import importlib
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segmenter.errors import EngineError
from segmenter_engines.sessions.device import open_device


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
