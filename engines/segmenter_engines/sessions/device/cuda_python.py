"""CUDA through NVIDIA's own bindings, the package cuda-python (`cuda.bindings`)."""

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from cuda.bindings import driver

from segmenter.errors import Unavailable
from segmenter_engines.sessions.device.interface import Device, Memory, Stream, handle_of


class CudaPythonDevice(Device):
    """The context current in the opening thread, else the primary context of the first device."""

    def __init__(self) -> None:
        # it complains of a driver that is not there by an exception of its own
        try:
            _call(driver.cuInit(0))
        except Exception as error:
            raise Unavailable(f"cuda-python: {error}") from error
        context = _call(driver.cuCtxGetCurrent())
        if int(context):
            _call(driver.cuCtxPushCurrent(context))
            device = _call(driver.cuCtxGetDevice())
            _call(driver.cuCtxPopCurrent())
        else:
            device = _call(driver.cuDeviceGet(0))
            context = _call(driver.cuDevicePrimaryCtxRetain(device))
            weakref.finalize(self, driver.cuDevicePrimaryCtxRelease, device).atexit = False
        self._context, self.index = context, int(device)
        self.name = "cuda-python"
        self.gpu = _call(driver.cuDeviceGetName(128, device)).split(b"\0")[0].decode()
        kinds = driver.CUdevice_attribute
        major, minor = (
            _call(driver.cuDeviceGetAttribute(kind, device))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.capability = (major, minor)
        version = _call(driver.cuDriverGetVersion())
        self.driver = f"CUDA {version // 1000}.{version % 1000 // 10}"

    @contextmanager
    def current(self) -> Iterator[None]:
        _call(driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            _call(driver.cuCtxPopCurrent())

    def memory(self) -> tuple[int, int]:
        free, total = _call(driver.cuMemGetInfo())
        return free, total

    def owner(self, pointer: int) -> int | None:
        kinds = driver.CUpointer_attribute
        error, kind = driver.cuPointerGetAttribute(kinds.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer)
        if int(error) or int(kind) != int(driver.CUmemorytype.CU_MEMORYTYPE_DEVICE):
            return None
        return int(_call(driver.cuPointerGetAttribute(kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer)))

    def allocate(self, nbytes: int, stream: Stream) -> Memory:
        pointer = int(_call(driver.cuMemAlloc(nbytes)))
        return Memory(pointer, nbytes, pointer, self._release(driver.cuMemFree, pointer))

    def pinned(self, nbytes: int) -> Memory:
        pointer = int(_call(driver.cuMemHostAlloc(nbytes, driver.CU_MEMHOSTALLOC_PORTABLE)))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))
        return Memory(pointer, nbytes, pointer, self._release(driver.cuMemFreeHost, pointer), array)

    def copy(self, target: Memory, source: Memory, nbytes: int, stream: Stream) -> None:
        _call(driver.cuMemcpyAsync(target.pointer, source.pointer, nbytes, stream.native))

    def stream(self) -> Stream:
        native = _call(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        stream = Stream(int(native), native)
        self._destroy_with(stream, driver.cuStreamDestroy, native)
        return stream

    def foreign(self, stream: Any) -> Stream:
        handle = handle_of(stream)
        return Stream(handle, driver.CUstream(handle))

    def record(self, stream: Stream) -> Any:
        event = _Event(_call(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)))
        self._destroy_with(event, driver.cuEventDestroy, event.native)
        _call(driver.cuEventRecord(event.native, stream.native))
        return event

    def wait(self, stream: Stream, event: Any) -> None:
        _call(driver.cuStreamWaitEvent(stream.native, event.native, 0))

    def finish(self, event: Any) -> None:
        _call(driver.cuEventSynchronize(event.native))

    def passed(self, event: Any) -> bool:
        (error,) = driver.cuEventQuery(event.native)
        return not int(error)

    def synchronize(self, stream: Stream) -> None:
        _call(driver.cuStreamSynchronize(stream.native))

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Callable[[Stream], None]:
        # other threads may allocate meanwhile
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(driver.cuStreamBeginCapture(stream.native, mode))
        try:
            enqueue()
        except BaseException:
            # a capture that is not ended leaves the stream unusable
            error, graph = driver.cuStreamEndCapture(stream.native)
            if not int(error) and int(graph):
                driver.cuGraphDestroy(graph)
            raise
        graph = _call(driver.cuStreamEndCapture(stream.native))
        try:
            executable = _call(driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)

        def launch(stream: Stream) -> None:
            _call(driver.cuGraphLaunch(executable, stream.native))

        self._destroy_with(launch, driver.cuGraphExecDestroy, executable)
        return launch

    def _destroy_with(self, holder: Any, function: Callable[[Any], Any], handle: Any) -> None:
        # not at interpreter exit: sessions that are still open close then, and need it
        weakref.finalize(holder, self._release(function, handle)).atexit = False

    def _release(self, function: Callable[[Any], Any], handle: Any) -> Callable[[], None]:
        """For finalizers, which run in any thread. A fault is nobody's to mend then: CUDA has told it before."""

        def release() -> None:
            # held by this, the context outlives what was made in it
            (error,) = driver.cuCtxPushCurrent(self._context)
            function(handle)
            if not int(error):
                driver.cuCtxPopCurrent()

        return release


class _Event:
    """An event, destroyed when nobody holds it."""

    def __init__(self, native: Any) -> None:
        self.native = native


def _call(answer: tuple[Any, ...]) -> Any:
    """What a function of the driver gives besides its error code; raises RuntimeError for a code that is not 0."""
    error, *values = answer
    if int(error):
        _, text = driver.cuGetErrorString(error)
        told = text.decode() if text else "no description"
        raise RuntimeError(f"{getattr(error, 'name', error)}: {told}")
    return values[0] if len(values) == 1 else tuple(values) or None
