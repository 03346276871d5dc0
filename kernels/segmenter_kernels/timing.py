"""How long a call takes on a GPU: under CUDA graphs, on data that are not in its cache, in quantiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

REPLAYS = 25
_REPLAY_MS = 4.0  # of one timed replay: long against the resolution of events
_MOST_CALLS = 2000


@dataclass(frozen=True)
class Quantiles:
    """Milliseconds a call."""

    ms_p50: float
    ms_p20: float
    ms_p80: float


def copies(arguments: Sequence[Any], device: torch.device) -> list[tuple[Any, ...]]:
    """The arguments and as many copies of their tensors as take twice the GPU's L2 cache together."""
    bytes_each = sum(x.numel() * x.element_size() for x in arguments if isinstance(x, Tensor))
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    count = min(_MOST_CALLS, 1 + 2 * cache_bytes // max(bytes_each, 1))
    cloned = [tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments) for _ in range(count - 1)]
    return [tuple(arguments), *cloned]


@dataclass(frozen=True)
class Captured:
    """`calls` calls in a CUDA graph."""

    graph: Any
    calls: int

    def replay(self) -> float:
        """Milliseconds a call, of one replay."""
        start, end = _events()
        self.graph.replay()
        return _between(start, end) / self.calls


def capture(call: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> Captured:
    """`call(*each)` for each of the arguments in turn, captured once and replayed until it is warm.

    Launching from Python takes longer than most of these kernels run; a graph leaves the kernels alone. What they write
    goes to memory of its own for each of the arguments. Raises whatever the call raises.
    """
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for each in arguments:
                call(*each)
            start, end = _events()
            for each in arguments:
                call(*each)
            rough_ms = _between(start, end) / len(arguments)
        torch.cuda.current_stream().wait_stream(stream)
        rounds = max(1, min(_MOST_CALLS, round(_REPLAY_MS / max(rough_ms, 1e-3))) // len(arguments))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                # results are held, for in the memory of the last one the next would be written to the cache alone
                results = [call(*each) for each in arguments]
                del results
        for _ in range(3):
            graph.replay()
    return Captured(graph, rounds * len(arguments))


def quantiles(times: Sequence[float]) -> Quantiles:
    """Of milliseconds a call, one for each replay."""
    p20, p50, p80 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    return Quantiles(p50, p20, p80)


def measure(call: Callable[..., Any], arguments: Sequence[Sequence[Any]], replays: int = REPLAYS) -> Quantiles:
    """Time `call(*each)` for each of the arguments in turn. Raises whatever the call raises."""
    captured = capture(call, arguments)
    return quantiles([captured.replay() for _ in range(replays)])


def _events() -> tuple[Any, Any]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    return start, end


def _between(start: Any, end: Any) -> float:
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
