"""A plan's execution: contexts, the memory they compute in, streams in order, and a CUDA graph a shape."""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from typing import Any

from segmenter.errors import EngineError
from segmenter_engines.sessions.device import Device, Memory, Stream
from segmenter_engines.sessions.plan import INPUT, Plan, release

CAPACITY = 8  # shapes whose outputs and graphs are kept
_WARMUPS = 2  # the first after a new shape prepares what a graph must not capture

Shape = tuple[int, ...]


@dataclass
class Known:
    """What is known of an input's shape: those of the outputs, and its graph once it came again."""

    outputs: dict[str, Shape]
    computed: bool = False
    graph: "Graph | None" = None
    capturable: bool = True  # until a capture fails, which leaves other shapes theirs


class Graph:
    """One shape, captured with a context and buffers of its own: changing a captured context would break the graph."""

    def __init__(self, runner: "Runner", shape: Shape, outputs: Mapping[str, Shape]) -> None:
        device, plan, stream = runner.device, runner.plan, runner.stream
        with ExitStack() as undone:
            self.buffers = {
                name: device.allocate(plan.types[name].itemsize * prod(size), stream)
                for name, size in ({INPUT: shape} | dict(outputs)).items()
            }
            undone.callback(self.free)
            self._context = runner.context(True)
            runner.bind(self._context, shape, {name: memory.pointer for name, memory in self.buffers.items()})

            def enqueue() -> None:
                runner.enqueue(self._context, stream)

            for _ in range(_WARMUPS):
                enqueue()
            device.synchronize(stream)
            # TensorRT-RTX can tell
            can = getattr(self._context, "is_stream_capturable", None)
            if can is not None and not can(stream.handle):
                raise EngineError(f"{plan.name} says this plan cannot be captured")
            self._launch: Callable[[Stream], None] = device.capture(stream, enqueue)
            undone.pop_all()

    def run(self, buffers: Mapping[str, Memory], device: Device, stream: Stream) -> None:
        """As an enqueue between `buffers`; copies on the device are nothing beside the network."""
        device.copy(self.buffers[INPUT], buffers[INPUT], self.buffers[INPUT].nbytes, stream)
        self._launch(stream)
        for name, memory in self.buffers.items():
            if name != INPUT:
                device.copy(buffers[name], memory, memory.nbytes, stream)

    def free(self) -> None:
        # the graph goes before the context, and both before the memory they point into
        self._launch = self._context = None  # type: ignore[assignment]
        for memory in self.buffers.values():
            memory.free()


class Runner:
    """What one session owns on the GPU. Its contexts compute in one scratch memory, so its work is kept in order.

    Used by one thread at a time, with the device current; `close` makes it current itself and may be called twice.
    """

    def __init__(self, plan: Plan, device: Device, graphs: bool) -> None:
        self.plan, self.device, self.closed = plan, device, False
        self._captures = graphs
        # why a shape was not captured, the last one that was not
        self.no_graphs: str | None = None if graphs else "opened without them"
        self.stream = device.stream()
        self._known: OrderedDict[Shape, Known] = OrderedDict()
        self._elsewhere: Any = None  # event of the last work on a stream that is not ours
        self._borrowed: deque[tuple[Any, Any]] = deque()  # events, and the arrays in use until then
        self.owned: list[Any] = []  # with `free`: to be given back before the contexts
        self._scratch = device.allocate(max(plan.scratch_bytes, 1), self.stream)
        self._context = self.context(graphs)

    @property
    def graphs(self) -> list[Shape]:
        """Shapes captured."""
        return [shape for shape, known in self._known.items() if known.graph is not None]

    @property
    def device_bytes(self) -> int:
        """Device memory the session itself holds: scratch and buffers, without the plan's weights."""
        graphs = [known.graph for known in self._known.values() if known.graph is not None]
        captured = sum(memory.nbytes for graph in graphs for memory in graph.buffers.values())
        return self._scratch.nbytes + captured + sum(each.device_bytes for each in self.owned)

    def context(self, fixed_kernels: bool) -> Any:
        return self.plan.context(self._scratch, fixed_kernels)

    def outputs(self, shape: Shape) -> dict[str, Shape]:
        """Shapes of the outputs for an input's.

        Raises EngineError for a shape outside the plan's profile.
        """
        if shape not in self._known:
            self._reshape(self._context, shape)
            found = {name: tuple(self._context.get_tensor_shape(name)) for name in self.plan.outputs}
            if len(self._known) == CAPACITY:
                self._forget(self._known.popitem(last=False)[1])
            self._known[shape] = Known(found)
        self._known.move_to_end(shape)
        return self._known[shape].outputs

    def run(self, shape: Shape, buffers: Mapping[str, Memory]) -> None:
        """Compute between buffers on our stream: by a graph from the second time a shape comes."""
        outputs = self.outputs(shape)
        known = self._known[shape]
        self._begin(self.stream)
        if known.computed and known.graph is None and known.capturable and self._captures:
            known.capturable = False
            try:
                known.graph = Graph(self, shape, outputs)
            except Exception as error:  # runtimes and libraries share no narrower base
                told = " ".join(str(error).split())[:300] or type(error).__name__
                B, H, W = self.plan.sides(shape)
                self.no_graphs = f"images {B}x{H}x{W}: {told}"
        if known.graph is not None:
            known.graph.run(buffers, self.device, self.stream)
        else:
            self._direct(shape, {name: memory.pointer for name, memory in buffers.items()}, self.stream)
        known.computed = True

    def run_at(self, shape: Shape, addresses: Mapping[str, int], stream: Stream, borrowed: Any) -> Any:
        """Compute between addresses on a stream; returns the event of its end, until which `borrowed` is held."""
        self._begin(stream)
        try:
            self._direct(shape, addresses, stream)
        finally:
            # it may have begun
            event = self.device.record(stream)
            self._elsewhere = event if stream.handle != self.stream.handle else None
            while self._borrowed and self.device.passed(self._borrowed[0][0]):
                self._borrowed.popleft()
            self._borrowed.append((event, borrowed))
        return event

    def bind(self, context: Any, shape: Shape, addresses: Mapping[str, int]) -> None:
        self._reshape(context, shape)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"{self.plan.name}: {name} at {address:#x} refused: {self.plan.complaint()}")

    def enqueue(self, context: Any, stream: Stream) -> None:
        self.plan.quieten()
        if not context.execute_async_v3(stream.handle):
            raise EngineError(f"{self.plan.name}: execution failed: {self.plan.complaint()}")

    def drain(self) -> None:
        """Wait for all that was begun; a device that has failed has nothing left to wait for."""
        for event in (self._elsewhere, *(event for event, _ in self._borrowed)):
            if event is not None:
                with suppress(Exception):
                    self.device.finish(event)
        with suppress(Exception):
            self.device.synchronize(self.stream)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with self.device.current():
            self.drain()
            self._borrowed.clear()
            for thing in self.owned:
                thing.free()
            self.owned.clear()
            for known in self._known.values():
                self._forget(known)
            self._known.clear()
            self._context = None
            self._scratch.free()
            release(self.plan)

    def _direct(self, shape: Shape, addresses: Mapping[str, int], stream: Stream) -> None:
        self.bind(self._context, shape, addresses)
        self.enqueue(self._context, stream)

    def _reshape(self, context: Any, shape: Shape) -> None:
        if not context.set_input_shape(INPUT, shape):
            raise EngineError(f"images {shape}: outside this plan's profile; build it for that size and batch")

    def _begin(self, stream: Stream) -> None:
        """Have a stream wait for what the session began on others: all of it computes in the same scratch memory."""
        if self._elsewhere is not None:
            self.device.wait(stream, self._elsewhere)
        if stream.handle != self.stream.handle:
            self.device.wait(stream, self.device.record(self.stream))
        else:
            self._elsewhere = None  # ours has it behind it from now on

    def _forget(self, known: Known) -> None:
        if known.graph is not None:
            with suppress(Exception):
                self.device.synchronize(self.stream)
            known.graph.free()
