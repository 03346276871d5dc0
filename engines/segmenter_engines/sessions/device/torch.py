"""CUDA through a CUDA build of PyTorch, on the device and the context that PyTorch uses."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch

from segmenter.errors import Unavailable
from segmenter_engines.sessions.cuda_graph import CAPTURE
from segmenter_engines.sessions.device.interface import LEGACY, Device, Memory, Stream, handle_of


class TorchDevice(Device):
    """Memory from PyTorch's caching allocator; streams and graphs are PyTorch's own."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            built = torch.version.cuda
            raise Unavailable("torch sees no CUDA device" if built else f"torch {torch.__version__} has no CUDA")
        self.name, self.index = f"torch {torch.__version__}", torch.cuda.current_device()
        self.gpu, self.capability = torch.cuda.get_device_name(self.index), torch.cuda.get_device_capability(self.index)
        self.driver = f"PyTorch for CUDA {torch.version.cuda}"
        self._device = torch.device("cuda", self.index)

    def current(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.index)

    def memory(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info(self.index)

    def owner(self, pointer: int) -> int | None:
        interface = {"shape": (1,), "typestr": "|u1", "data": (pointer, False), "version": 2}
        probe = type("Probe", (), {"__cuda_array_interface__": interface})()
        try:
            return torch.as_tensor(probe).device.index
        except (RuntimeError, ValueError):  # memory of the host
            return None

    def allocate(self, nbytes: int, stream: Stream) -> Memory:
        with torch.cuda.stream(stream.native):
            return _owned(torch.empty(nbytes, dtype=torch.uint8, device=self._device))

    def pinned(self, nbytes: int) -> Memory:
        return _owned(torch.empty(nbytes, dtype=torch.uint8, pin_memory=True), on_host=True)

    def copy(self, target: Memory, source: Memory, nbytes: int, stream: Stream) -> None:
        with torch.cuda.stream(stream.native):
            target.native[:nbytes].copy_(source.native[:nbytes], non_blocking=True)

    def stream(self) -> Stream:
        native = torch.cuda.Stream(self._device)
        return Stream(native.cuda_stream, native)

    def foreign(self, stream: Any) -> Stream:
        handle = handle_of(stream)
        if handle == LEGACY:
            return Stream(handle, torch.cuda.default_stream(self._device))
        return Stream(handle, torch.cuda.ExternalStream(handle, self._device))

    def record(self, stream: Stream) -> Any:
        event = torch.cuda.Event()
        event.record(stream.native)
        return event

    def wait(self, stream: Stream, event: Any) -> None:
        stream.native.wait_event(event)

    def finish(self, event: Any) -> None:
        event.synchronize()

    def passed(self, event: Any) -> bool:
        return event.query()

    def synchronize(self, stream: Stream) -> None:
        stream.native.synchronize()

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Callable[[Stream], None]:
        graph = torch.cuda.CUDAGraph()
        with CAPTURE, torch.cuda.stream(stream.native):
            # other threads may allocate meanwhile
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                enqueue()
            except BaseException:
                # a capture that is not ended leaves the stream unusable
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()

        def launch(stream: Stream) -> None:
            with torch.cuda.stream(stream.native):
                graph.replay()

        return launch


def _owned(tensor: torch.Tensor, on_host: bool = False) -> Memory:
    held = [tensor]  # the allocator takes the memory back when the last to hold the tensor lets go
    return Memory(tensor.data_ptr(), tensor.numel(), tensor, held.clear, tensor.numpy() if on_host else None)
