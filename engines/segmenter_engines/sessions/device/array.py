"""Arrays on the device, in and out without copies: DLPack and `__cuda_array_interface__`."""

from typing import Any

import numpy as np

from segmenter.errors import EngineError
from segmenter_engines.sessions.device import dlpack
from segmenter_engines.sessions.device.interface import LEGACY, Device, Memory, Stream


class DeviceArray:
    """An array in C order on the device, such as a session's labels, for any library that knows either protocol.

    It is whole once the work on its stream is done. Both protocols order what their consumer does after that; to use
    it on another stream after letting go of it, wait for that use first.
    Source: DLPack in the Python array API standard; CUDA Array Interface, version 3.
    """

    def __init__(
        self, device: Device, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream, event: Any
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._device, self._memory, self._stream, self._event = device, memory, stream, event

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # consumers that overlook the stream mostly work on the default one
        self._order(LEGACY)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.pointer, False),
            "strides": None,
            "stream": self._stream.handle,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device.dlpack_type, self._device.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule. stream: the consumer's, which waits for the labels; None is the default stream, -1 waits for none.

        Raises BufferError where a copy or another device is asked for.
        """
        here = self.__dlpack_device__()
        if copy or dl_device not in (None, here):
            raise BufferError(f"labels on device {here}: shared where they are, without a copy; move them afterwards")
        if stream != -1:
            self._order(LEGACY if stream is None else stream)
        return dlpack.make(self._memory.pointer, self.shape, self.dtype, here, self._memory)

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        device, nbytes = self._device, self._memory.nbytes
        with device.current():
            host = device.pinned(nbytes)
            device.wait(self._stream, self._event)
            device.copy(host, self._memory, nbytes, self._stream)
            device.synchronize(self._stream)
            array = host.array.view(self.dtype).reshape(self.shape).copy()
            host.free()
        return array

    def _order(self, handle: int) -> None:
        if handle != self._stream.handle:
            with self._device.current():
                self._device.wait(self._device.foreign(handle), self._event)


def view_of(images: Any, device: Device, stream: Stream) -> dlpack.View:
    """Somebody's array on the device, through DLPack or else `__cuda_array_interface__`; `stream` waits for its maker.

    Raises EngineError for what is no array or is not on this device.
    """
    kind = type(images).__name__
    if hasattr(images, "__dlpack__") and hasattr(images, "__dlpack_device__"):
        where, index = images.__dlpack_device__()
        if int(where) != device.dlpack_type:
            raise EngineError(
                f"images {kind} are not in CUDA memory (DLPack device {int(where)}); pass them to session(images), or"
                f" move them to device {device.index}"
            )
        _require_same(kind, index, device)
        return dlpack.read(images.__dlpack__(stream=stream.handle))
    if not hasattr(images, "__cuda_array_interface__"):
        raise EngineError(
            f"images {kind}: wanted an array on the device, with __dlpack__ or __cuda_array_interface__; arrays of the"
            " host go to session(images)"
        )
    interface = images.__cuda_array_interface__
    pointer, shape = interface["data"][0], tuple(interface["shape"])
    if interface.get("mask") is not None:
        raise EngineError(f"images {kind} have a mask; pass the array without it")
    if pointer:
        _require_same(kind, device.owner(pointer), device)
    # one that names no stream may yet be at work on the default one
    maker = interface.get("stream") or LEGACY
    if maker != stream.handle:
        device.wait(stream, device.record(device.foreign(maker)))
    strides = interface.get("strides")
    return dlpack.View(pointer, shape, strides and tuple(strides), np.dtype(interface["typestr"]), images)


def _require_same(kind: str, index: int | None, device: Device) -> None:
    if index != device.index:
        where = "the host" if index is None else f"device {index}"
        raise EngineError(f"images {kind} are on {where}: this session is on device {device.index}; move them there")
