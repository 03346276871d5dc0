"""A process of its own for NVIDIA's Python bindings on `fake_libcuda`: prints what it found as JSON, a line at the end.

Called as a module with a folder to write plans to, its library path leading to the fake driver.
"""

import ctypes
import json
import sys
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from segmenter_engines.sessions import open_engine
from segmenter_engines.sessions import plan as plans
from segmenter_engines.sessions.device import open_device
from tests.fake_tensorrt import FakeTensorRT, labels_of, normalized, write_plan
from tests.small_engines import pictures

COUNTS = ("device", "host", "streams", "events", "graphs", "executables", "retained", "faults", "contexts")


class Driver:
    """The fake driver as `FakeTensorRT` uses one: it launches what it computes as functions of the host."""

    def __init__(self):
        self.library, self.faults, self.launched = ctypes.CDLL("libcuda.so.1"), [], []

    def bytes_at(self, pointer, nbytes):
        if not self.library.fake_holds(ctypes.c_void_p(pointer), ctypes.c_size_t(nbytes)):
            self.faults.append(f"{nbytes} bytes at {pointer:#x} are not live")
            return None
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))

    def capturing(self, handle):
        status = ctypes.c_int()
        assert self.library.cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status)) == 0
        return bool(status.value)

    def put(self, handle, work):
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: work())
        self.launched.append(function)
        assert self.library.cuLaunchHostFunc(ctypes.c_void_p(handle), function, None) == 0

    def report(self):
        counts = (ctypes.c_int * len(COUNTS))()
        self.library.fake_report(counts)
        return dict(zip(COUNTS, counts, strict=True)) | {"python": self.faults}


class Array:
    """Images in memory of the device."""

    def __init__(self, device, stream, values):
        self.memory = device.allocate(values.nbytes, stream)
        host = device.pinned(values.nbytes)
        host.array[:] = values.reshape(-1).view(np.uint8)
        device.copy(self.memory, host, values.nbytes, stream)
        device.synchronize(stream)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.memory.pointer, False),
            "version": 3,
            "stream": stream.handle,
        }


def main(folder):
    driver, found = Driver(), {}
    # finalizers run the last made first: this one after those of every session
    weakref.finalize(driver, lambda report: print(json.dumps(report())), driver.report)
    trt, patch = FakeTensorRT(driver), pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setattr(plans, "tensorrt", lambda engine: trt)
    patch.setattr(plans, "builder_log", lambda engine: trt.log)
    images = pictures(3, 40, 56)
    expected = labels_of(images, 5)
    session = open_engine(write_plan(folder / "m.plan"), threads=1)
    with session:
        found["labels"] = [bool(np.array_equal(session(images), expected)) for _ in range(3)]
        found["streamed"] = bool(np.array_equal(np.stack(list(session.stream(images))), expected))
        device = open_device("tensorrt-rtx", ["cuda-python"])
        with device.current():
            stream = device.stream()
            try:
                device.capture(stream, partial(device.synchronize, stream))
            except RuntimeError as error:
                found["capture"] = str(error)
            array = Array(device, stream, normalized(images))  # on a stream that is no longer captured
        labels = session.run_device(array, stream.handle)
        found["on_device"] = bool(np.array_equal(labels.numpy(), expected))
        found["handed_on"] = labels.__cuda_array_interface__["stream"] == stream.handle
        found["dlpack_device"] = labels.__dlpack_device__()
        facts = session.describe()
        found |= {key: facts[key] for key in ("device", "device_library", "driver", "compute_capability", "graphs")}
    del labels, array, stream, device, session
    found["closed"] = driver.report()
    print(json.dumps(found), flush=True)
    left = open_engine(folder / "m.plan", threads=1)
    for _ in range(3):
        left(images)
    streamed = left.stream(images)
    next(streamed)
    return left, streamed


if __name__ == "__main__":
    held = main(Path(sys.argv[1]))
