"""What running a plan asks of CUDA, whichever library does it."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

LEGACY, PER_THREAD = 1, 2  # handles of the two default streams, in CUDA's drivers, DLPack and __cuda_array_interface__


class Memory:
    """Bytes on the device, or page-locked on the host, where `array` (uint8) views them.

    Given back by `free` or when nobody holds it any more, and once only.
    """

    def __init__(
        self, pointer: int, nbytes: int, native: Any, release: Callable[[], None], array: np.ndarray | None = None
    ) -> None:
        self.pointer, self.nbytes, self.native = pointer, nbytes, native
        self._array = array
        self._released = weakref.finalize(self, release)
        # at interpreter exit whoever has work under way in it waits for that first, and then frees it
        self._released.atexit = False

    @property
    def array(self) -> np.ndarray:
        assert self._array is not None, "memory of the device"
        return self._array

    def free(self) -> None:
        self.native = self._array = None
        self._released()


@dataclass(frozen=True, eq=False)
class Stream:
    """A CUDA stream: its handle, and what the library knows it by."""

    handle: int
    native: Any


class Device(ABC):
    """One GPU through one library. Everything but `current` and `name` is called with the device current.

    Copies and launches are put on streams and return at once; `synchronize` and `finish` wait.
    """

    name: str  # the library, such as `torch 2.10.0`
    index: int  # CUDA's number of the device
    gpu: str
    capability: tuple[int, int]
    driver: str  # the newest CUDA it knows, such as `13.0`
    dlpack_type = 2  # kDLCUDA

    @abstractmethod
    def current(self) -> AbstractContextManager[Any]:
        """Makes the device the calling thread's within the block."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""

    @abstractmethod
    def owner(self, pointer: int) -> int | None:
        """Number of the device whose memory a pointer is in; None for memory of no device."""

    @abstractmethod
    def allocate(self, nbytes: int, stream: Stream) -> Memory:
        """Memory of the device, aligned to 256 bytes, to be used on `stream` first. Freed with its work done."""

    @abstractmethod
    def pinned(self, nbytes: int) -> Memory:
        """Page-locked memory of the host."""

    @abstractmethod
    def copy(self, target: Memory, source: Memory, nbytes: int, stream: Stream) -> None:
        """The first bytes of one into the other; on the host, that is page-locked memory."""

    @abstractmethod
    def stream(self) -> Stream:
        """A stream that does not wait for the default stream, gone when nobody holds it."""

    @abstractmethod
    def foreign(self, stream: Any) -> Stream:
        """A stream somebody else made and keeps: a handle, or an object of this or another library."""

    @abstractmethod
    def record(self, stream: Stream) -> Any:
        """An event that comes to pass when what is on the stream now is done."""

    @abstractmethod
    def wait(self, stream: Stream, event: Any) -> None:
        """What comes onto the stream from now on waits for the event."""

    @abstractmethod
    def finish(self, event: Any) -> None:
        """Wait for an event."""

    @abstractmethod
    def passed(self, event: Any) -> bool:
        """Whether an event has come to pass."""

    @abstractmethod
    def synchronize(self, stream: Stream) -> None:
        """Wait for all that is on a stream."""

    @abstractmethod
    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Callable[[Stream], None]:
        """What `enqueue` puts on the stream, as a graph: a function that launches it on a stream.

        The stream is usable afterwards, also where it raises because something in `enqueue` cannot be captured.
        """


def handle_of(stream: Any) -> int:
    """The handle of a stream: an int, or an object of PyTorch, CuPy, PyCUDA, or with `__cuda_stream__`.

    Raises TypeError for anything else.
    """
    if isinstance(stream, int):
        # 0 is the legacy default stream where nothing else is said
        return stream or LEGACY
    told = getattr(stream, "__cuda_stream__", None)
    if told is not None:
        return int((told() if callable(told) else told)[1]) or LEGACY
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, name):
            return int(getattr(stream, name)) or LEGACY
    raise TypeError(
        f"stream {type(stream).__name__}: wanted a handle or a stream of PyTorch, CuPy, PyCUDA or cuda.core"
    )
