"""CUDA through PyCUDA, for programs that hold their images in its arrays."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from pycuda import VERSION_TEXT, driver

from segmenter.errors import EngineError, Unavailable
from segmenter_engines.sessions.device.interface import LEGACY, Device, Memory, Stream, handle_of


class PyCudaDevice(Device):
    """The context current in the opening thread, as `pycuda.autoinit` makes one, else the primary of the first device.

    PyCUDA makes no graphs, and knows other libraries' streams by number only: where one of those is passed, the host
    waits instead of the stream.
    """

    def __init__(self) -> None:
        try:
            driver.init()
            context = driver.Context.get_current()
            self._context = context or driver.Device(0).retain_primary_context()
        except driver.Error as error:
            raise Unavailable(f"pycuda: {error}") from error
        with self.current():
            device = driver.Context.get_device()
            pci = device.pci_bus_id()
        # PyCUDA does not tell a device's number
        self.index = next(index for index in range(driver.Device.count()) if driver.Device(index).pci_bus_id() == pci)
        self.name, self.gpu, self.capability = f"pycuda {VERSION_TEXT}", device.name(), device.compute_capability()
        version = driver.get_driver_version()
        self.driver = f"CUDA {version // 1000}.{version % 1000 // 10}"

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            driver.Context.pop()

    def memory(self) -> tuple[int, int]:
        free, total = driver.mem_get_info()
        return free, total

    def owner(self, pointer: int) -> int | None:
        try:
            driver.mem_get_address_range(pointer)
        except driver.Error:
            return None
        return self.index

    def allocate(self, nbytes: int, stream: Stream) -> Memory:
        native = driver.mem_alloc(nbytes)
        return Memory(int(native), nbytes, native, native.free)

    def pinned(self, nbytes: int) -> Memory:
        array = driver.pagelocked_empty(nbytes, np.uint8)
        held = [array]  # given back with the last view of it
        return Memory(array.ctypes.data, nbytes, array, held.clear, array)

    def copy(self, target: Memory, source: Memory, nbytes: int, stream: Stream) -> None:
        if isinstance(source.native, np.ndarray):
            driver.memcpy_htod_async(target.native, source.native[:nbytes], stream.native)
        elif isinstance(target.native, np.ndarray):
            driver.memcpy_dtoh_async(target.native[:nbytes], source.native, stream.native)
        else:
            driver.memcpy_dtod_async(target.native, source.native, nbytes, stream.native)

    def stream(self) -> Stream:
        native = driver.Stream(1)  # CU_STREAM_NON_BLOCKING, which PyCUDA has no name for
        return Stream(native.handle, native)

    def foreign(self, stream: Any) -> Stream:
        return Stream(handle_of(stream), stream if isinstance(stream, driver.Stream) else None)

    def record(self, stream: Stream) -> Any:
        event = driver.Event(driver.event_flags.DISABLE_TIMING)
        if stream.native is None and stream.handle != LEGACY:
            driver.Context.synchronize()
        return event.record(stream.native)

    def wait(self, stream: Stream, event: Any) -> None:
        if stream.native is None:
            event.synchronize()
        else:
            stream.native.wait_for_event(event)

    def finish(self, event: Any) -> None:
        event.synchronize()

    def passed(self, event: Any) -> bool:
        return event.query()

    def synchronize(self, stream: Stream) -> None:
        if stream.native is None:
            driver.Context.synchronize()
        else:
            stream.native.synchronize()

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Callable[[Stream], None]:
        raise EngineError("PyCUDA makes no CUDA graphs; cuda-python and PyTorch do")
