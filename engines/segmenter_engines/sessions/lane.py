"""One batch on its way through the GPU and back: page-locked and device memory, kept for the next."""

from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np

from segmenter_engines.sessions.device import Memory, Stream
from segmenter_engines.sessions.plan import INPUT
from segmenter_engines.sessions.runner import Runner, Shape


class Lane:
    """Carries one batch at a time, on the runner's stream or with streams of its own for either copy.

    Two of them overlap: while one computes, the other is filled and emptied.
    """

    def __init__(self, runner: Runner, up: Stream | None = None, down: Stream | None = None) -> None:
        self._runner, self._device = runner, runner.device
        self._up, self._down = up or runner.stream, down or runner.stream
        self._on_host: dict[str, Memory] = {}
        self._on_device: dict[str, Memory] = {}
        self._pending: tuple[Any, dict[str, Shape]] | None = None
        runner.owned.append(self)

    @property
    def device_bytes(self) -> int:
        return sum(memory.nbytes for memory in self._on_device.values())

    def submit(self, x: np.ndarray, wanted: Sequence[str]) -> None:
        """Begin a batch, as the plan takes it; `wanted` are the outputs to bring back."""
        runner, device = self._runner, self._device
        outputs = runner.outputs(x.shape)
        for name, shape in ({INPUT: x.shape} | outputs).items():
            self._fit(name, runner.plan.types[name].itemsize * prod(shape), name == INPUT or name in wanted)
        try:
            self._view(INPUT, x.shape)[...] = x
            device.copy(self._on_device[INPUT], self._on_host[INPUT], x.nbytes, self._up)
            self._follow(runner.stream, self._up)
            runner.run(x.shape, self._on_device)
            self._follow(self._down, runner.stream)
            for name in wanted:
                nbytes = runner.plan.types[name].itemsize * prod(outputs[name])
                device.copy(self._on_host[name], self._on_device[name], nbytes, self._down)
            self._pending = device.record(self._down), {name: outputs[name] for name in wanted}
        except BaseException:
            self._settle()
            raise

    def collect(self) -> dict[str, np.ndarray]:
        """Wait for the batch; its outputs, the caller's own."""
        assert self._pending is not None, "nothing was submitted"
        (event, shapes), self._pending = self._pending, None
        self._device.finish(event)
        return {name: self._view(name, shape).copy() for name, shape in shapes.items()}

    def free(self) -> None:
        """Give the memory back, once nothing is under way in it; twice is as good as once."""
        if self._on_device:
            self._settle()
        for memory in (*self._on_host.values(), *self._on_device.values()):
            memory.free()
        self._on_host, self._on_device, self._pending = {}, {}, None

    def _settle(self) -> None:
        for stream in (self._up, self._runner.stream, self._down):
            with suppress(Exception):  # of a device that has failed there is nothing to wait for
                self._device.synchronize(stream)

    def _follow(self, stream: Stream, before: Stream) -> None:
        if stream is not before:
            self._device.wait(stream, self._device.record(before))

    def _fit(self, name: str, nbytes: int, on_host: bool) -> None:
        if name not in self._on_device or self._on_device[name].nbytes < nbytes:
            first = self._up if name == INPUT else self._runner.stream
            self._on_device[name] = self._device.allocate(nbytes, first)
        if on_host and (name not in self._on_host or self._on_host[name].nbytes < nbytes):
            self._on_host[name] = self._device.pinned(nbytes)

    def _view(self, name: str, shape: Shape) -> np.ndarray:
        dtype = self._runner.plan.types[name]
        return self._on_host[name].array[: dtype.itemsize * prod(shape)].view(dtype).reshape(shape)
