"""A GPU of host memory whose streams are lazy: work waits until somebody waits for it, so a missing wait shows.

While one stream is waited for, every other one goes on too, a step at a time, so far as it need not wait itself.

New memory is filled with 0xAB and freed memory with 0xDD; what touches memory that is not live, or calls without the
device current, is a fault. Its memory is DLPack's kind 1, the host, so NumPy itself takes what it makes.
"""

import threading
from collections import deque
from contextlib import contextmanager

import numpy as np

from segmenter_engines.sessions.device import LEGACY, Device, Memory, Stream
from segmenter_engines.sessions.device.interface import handle_of


class Queue:
    """A stream: what was put on it, and how much of that is done."""

    def __init__(self):
        self.work, self.put, self.done, self.recorded = deque(), 0, 0, None
        self.busy = False


class FakeCuda(Device):
    dlpack_type = 1

    def __init__(self, capability=(9, 0)):
        self.name, self.index, self.gpu, self.driver = "fake 1.0", 0, "Fake GPU", "CUDA 13.0"
        self.capability = capability
        self.lock, self.thread = threading.RLock(), threading.local()
        self.live, self.dead, self.faults = {}, [], []
        self.queues = {LEGACY: Queue()}
        self.capture_fails = False
        self.captures = self.launches = self.copies = 0

    @contextmanager
    def current(self):
        depth = getattr(self.thread, "depth", 0)
        self.thread.depth = depth + 1
        try:
            yield
        finally:
            self.thread.depth = depth

    def memory(self):
        self._here()
        return 3 << 30, 4 << 30

    def owner(self, pointer):
        self._here()
        return 0 if self._holding(pointer, 1) is not None else None

    def allocate(self, nbytes, stream):
        self._here()
        assert stream.handle in self.queues
        return self._memory(nbytes)

    def pinned(self, nbytes):
        self._here()
        return self._memory(nbytes, on_host=True)

    def copy(self, target, source, nbytes, stream):
        self._here()
        assert nbytes <= min(target.nbytes, source.nbytes)
        self.copies += 1
        to, of = target.pointer, source.pointer

        def work():
            read, write = self.bytes_at(of, nbytes), self.bytes_at(to, nbytes)
            if read is not None and write is not None:
                write[:] = read

        self.put(stream.handle, work)

    def stream(self):
        self._here()
        with self.lock:
            handle = 0x1000 + 16 * len(self.queues)
            self.queues[handle] = Queue()
        return Stream(handle, None)

    def foreign(self, stream):
        self._here()
        return Stream(handle_of(stream), None)

    def record(self, stream):
        self._here()
        return stream.handle, self.queues[stream.handle].put

    def wait(self, stream, event):
        self._here()
        self.put(stream.handle, event)

    def finish(self, event):
        self._here()
        self._require_no_capture()
        self._drain(*event)

    def passed(self, event):
        self._here()
        return self.queues[event[0]].done >= event[1]

    def synchronize(self, stream):
        self._here()
        self._require_no_capture()
        self._drain(stream.handle, self.queues[stream.handle].put)

    def capture(self, stream, enqueue):
        self._here()
        queue = self.queues[stream.handle]
        queue.recorded = []
        self.thread.capturing = True
        try:
            enqueue()
            if self.capture_fails:
                raise RuntimeError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: operation not permitted")
            recorded = queue.recorded
        finally:
            queue.recorded, self.thread.capturing = None, False
        self.captures += 1

        def launch(stream):
            self._here()
            self.launches += 1
            for work in recorded:
                self.put(stream.handle, work)

        return launch

    def capturing(self, handle):
        return self.queues[handle].recorded is not None

    def put(self, handle, work):
        """Work, or an event to wait for, at the end of a stream, or in the graph that is being captured of it."""
        with self.lock:
            queue = self.queues[handle]
            if queue.recorded is not None:
                queue.recorded.append(work)
            else:
                queue.work.append(work)
                queue.put += 1

    def bytes_at(self, pointer, nbytes):
        """Live memory; a fault and None where there is none."""
        found = self._holding(pointer, nbytes)
        if found is None:
            self.faults.append(f"{nbytes} bytes at {pointer:#x} are not live")
        return found

    def array(self, values):
        """Values in memory of the device, as somebody's (address, memory)."""
        with self.current():
            memory = self._memory(values.nbytes)
        self.bytes_at(memory.pointer, values.nbytes)[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return memory

    def _memory(self, nbytes, on_host=False):
        assert nbytes > 0
        room = np.full(nbytes + 256, 0xAB, np.uint8)
        start = -room.ctypes.data % 256
        array = room[start : start + nbytes]
        with self.lock:
            self.live[array.ctypes.data] = array
        pointer = array.ctypes.data
        return Memory(pointer, nbytes, pointer, lambda: self._free(pointer), array if on_host else None)

    def _free(self, pointer):
        with self.lock:
            array = self.live.pop(pointer)
            array[:] = 0xDD
            self.dead.append(array)

    def _holding(self, pointer, nbytes):
        with self.lock:
            for start, array in self.live.items():
                if start <= pointer and pointer + nbytes <= start + array.nbytes:
                    return array[pointer - start : pointer - start + nbytes]
        return None

    def _drain(self, handle, until):
        with self.lock:
            queue = self.queues[handle]
            while queue.done < until:
                for other in list(self.queues.values()):
                    if other is not queue and other.work and not other.busy and self._may(other.work[0]):
                        self._step(other)
                if queue.done < until:
                    self._step(queue)

    def _may(self, work):
        return callable(work) or self.queues[work[0]].done >= work[1]

    def _step(self, queue):
        work, queue.busy = queue.work.popleft(), True
        if callable(work):
            work()
        else:
            self._drain(*work)
        queue.busy = False
        queue.done += 1

    def _here(self):
        if not getattr(self.thread, "depth", 0):
            self.faults.append("called without the device current")

    def _require_no_capture(self):
        if getattr(self.thread, "capturing", False):
            raise RuntimeError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: waiting while capturing")
