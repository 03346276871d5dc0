"""Kernels against their rivals: each answer judged, then timed, and set beside what the GPU was measured to do.

Needs PyTorch and Triton alone, so that a bare machine with a GPU can run it from a checkout.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from segmenter_bench.runs import new_run
from segmenter_bench.timing import take_turns

if TYPE_CHECKING:
    from segmenter_kernels.timing import Captured, Quantiles
    from segmenter_kernels.workload import Workload

OURS = "triton"
# ops bound by products, and the kind of product; the others are bound by memory
PRODUCTS = {
    **dict.fromkeys(("attention", "linear_gelu", "linear_residual"), "float"),
    **{"linear_int8": "int8", "linear_fp8": "fp8"},
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SDPA = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
_FP8_LARGEST = 448
Measure = Callable[[Callable[..., Any], Sequence[Sequence[Any]]], "Quantiles"]
Capture = Callable[[Callable[..., Any], Sequence[Sequence[Any]]], "Captured"]
TIMED = (
    "one call among many captured in a CUDA graph, on arguments that are not in the L2 cache; a shape's kernels take"
    " turns, a replay each"
)
PAST = (
    "Past 100 % of its ceiling a kernel shows that a large product or copy by PyTorch is not the most this GPU can do."
)


@dataclass(frozen=True)
class Rival:
    """One way to compute an op; `plain` says in PyTorch what it computes, where that is not the whole op."""

    name: str
    call: Callable[..., Any]
    plain: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Ceilings:
    """What this GPU was measured to do: large matrix products by kind, and a large copy (bytes read and written)."""

    tflops: Mapping[str, float]
    gb_per_s: float

    def best(self, other: "Ceilings") -> "Ceilings":
        """The larger of two readings of each: what the GPU did once it can do."""
        kinds = {**self.tflops, **other.tflops}
        both = {kind: max(one.tflops.get(kind, 0.0) for one in (self, other)) for kind in kinds}
        return Ceilings(both, max(self.gb_per_s, other.gb_per_s))

    def share(self, op: str, tflops: float, gb_per_s: float) -> float | None:
        """How much of what bounds an op was reached; None where that ceiling is not known."""
        if op not in PRODUCTS:
            return gb_per_s / self.gb_per_s
        ceiling = self.tflops.get(PRODUCTS[op])
        return tflops / ceiling if ceiling else None


def rivals_of(workload: "Workload") -> Iterator[Rival]:
    """Ours first, then PyTorch's ways, those that are installed."""
    yield Rival(OURS, workload.launch)
    yield Rival("eager", workload.plain)
    if workload.op == "attention":
        # compiled, it is a call of one of these
        for name, backend in SDPA.items():
            yield Rival(name, _sdpa(workload, backend))
        try:
            flash = import_module("flash_attn").flash_attn_qkvpacked_func
        except ImportError:
            return
        yield Rival("flash-attn", lambda qkv, A: flash(_heads_apart(qkv, A)).flatten(2))
        return
    # all workloads are one code object, which Dynamo compiles so many times and then, silently, no more
    torch.compiler.reset()
    yield Rival("compiled", torch.compile(workload.plain, dynamic=False))
    if workload.op in ("linear_gelu", "linear_residual"):
        yield Rival("cublas, product alone", _product, _product)
    if workload.op == "linear_int8":
        yield Rival("cublas, product alone", _int8_product, _plain_int8_product)
    if workload.op == "linear_fp8":
        yield Rival("cublas, product alone", _fp8_product, _plain_fp8_product)


def _sdpa(workload: "Workload", backend: SDPBackend) -> Callable[..., Tensor]:
    def call(qkv: Tensor, A: int) -> Tensor:
        with sdpa_kernel(backend):
            return workload.plain(qkv, A)

    return call


def _product(x: Tensor, weight: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _int8_product(x: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    return torch._int_mm(x.flatten(0, 1), weight.mT).unflatten(0, x.shape[:2])


def _plain_int8_product(x: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float64)  # exact
    return F.linear(x.to(wide), weight.to(wide))


def _fp8_product(x: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    # without a scale the sums leave fp16's range
    scale = torch.full((), 1 / _FP8_LARGEST, device=x.device)
    product = torch._scaled_mm(x.flatten(0, 1), weight.mT, scale, scale, out_dtype=torch.float16)
    return product.unflatten(0, x.shape[:2])


def _plain_fp8_product(x: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    return F.linear(x.double() / _FP8_LARGEST, weight.double() / _FP8_LARGEST)


def _heads_apart(qkv: Tensor, A: int) -> Tensor:
    return qkv.view(*qkv.shape[:2], 3, A, -1)


def rows_of(
    workload: "Workload",
    rivals: Sequence[Rival],
    arguments: Sequence[tuple[Any, ...]],
    ceilings: Ceilings,
    capture: Capture,
) -> list[dict[str, Any]]:
    """One row a rival: judged on the first arguments, then timed on all; a wrong answer or a failure has no times.

    They take turns, so that a GPU that grows warm or slow grows so for all, and another is the first in every round.
    """
    from segmenter_kernels import timing
    from segmenter_kernels.judging import judge

    rows: list[dict[str, Any]] = []
    captured: dict[str, Captured] = {}
    for rival in rivals:
        # compiling takes seconds
        print(f"{workload.op} {workload.shape}: {rival.name}", file=sys.stderr, flush=True)
        row: dict[str, Any] = {
            **{"op": workload.op, "shape": workload.shape, "dtype": str(workload.dtype).removeprefix("torch.")},
            **{"provider": rival.name, "status": "ok", "reason": None, "error": None, "budget": None},
            **{"ms_p50": None, "ms_p20": None, "ms_p80": None, "tflops": None, "gb_per_s": None, "share": None},
        }
        rows.append(row)
        try:
            with torch.inference_mode():
                verdict = judge(workload, rival.call(*arguments[0]), arguments[0], rival.plain)
            row |= asdict(verdict)
            if not verdict.right:
                row |= {"status": "wrong", "reason": f"error {verdict.error:.3g}, budget {verdict.budget:.3g}"}
                continue
            captured[rival.name] = capture(rival.call, arguments)
        except Exception as error:  # a rival may lack the shape, the type or the GPU; they share no narrower base
            row |= {"status": "failed", "reason": error_of(error)}
    timed = [row for row in rows if row["provider"] in captured]
    try:
        times = take_turns({name: one.replay for name, one in captured.items()}, timing.REPLAYS)
    except Exception as error:  # it spoils the GPU's context for all of them
        for row in timed:
            row |= {"status": "failed", "reason": error_of(error)}
        return rows
    for row in timed:
        row |= _speed(workload, timing.quantiles(times[row["provider"]]), ceilings)
    return rows


def error_of(error: Exception) -> str:
    """Kind and message of what went wrong, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _speed(workload: "Workload", times: "Quantiles", ceilings: Ceilings) -> dict[str, Any]:
    tflops, gb_per_s = workload.flops / times.ms_p50 / 1e9, workload.traffic_bytes / times.ms_p50 / 1e6
    share = ceilings.share(workload.op, tflops, gb_per_s)
    return asdict(times) | {"tflops": tflops, "gb_per_s": gb_per_s, "share": share}


def past(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a share above 1 among these rows says, if there is one."""
    return PAST if any(row["share"] and row["share"] > 1.0 for row in rows) else ""


def ceilings_of(
    dtype: torch.dtype, device: torch.device, measure: Measure, side: int = 8192, copied_bytes: int = 1 << 30
) -> Ceilings:
    """Measure products of two `side` x `side` matrices by PyTorch, and a copy of `copied_bytes`."""
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    products: dict[str, tuple[Callable[..., Tensor], torch.dtype]] = {
        "float": (lambda x, y: x @ y.mT, dtype),
        "int8": (lambda x, y: _int8_product(x[None], y), torch.int8),
        "fp8": (lambda x, y: _fp8_product(x[None], y), torch.float8_e4m3fn),
    }
    tflops = {}
    for name, (product, kind) in products.items():
        try:
            operands = tuple((x * 30).to(kind) if kind == torch.int8 else x.to(kind) for x in (a, b))
            tflops[name] = 2 * side**3 / measure(product, [operands]).ms_p50 / 1e9
        except RuntimeError as error:  # a GPU without this kind
            print(f"no ceiling for {name} products: {' '.join(str(error).split())[:120]}", file=sys.stderr)
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device)
    copy_ms = measure(lambda x, y: x.copy_(y), [(torch.empty_like(source), source)]).ms_p50
    return Ceilings(tflops, 2 * copied_bytes / copy_ms / 1e6)


def measured(
    ops: Sequence[str],
    dtype_name: str,
    batches: Sequence[int],
    with_rivals: bool,
    command: str,
    widths: Sequence[str] = (),
    keep: Callable[[dict[str, Any]], object] = lambda run: None,
) -> dict[str, Any]:
    """The run, see `segmenter_bench.runs`. Needs a GPU.

    widths: networks by name (`segmenter_kernels.workloads.WIDTHS`), all when empty. keep: called with the run as far as
    it is after each workload.
    """
    from segmenter_kernels import tiles, timing, workloads

    dtype, device = DTYPES[dtype_name], torch.device("cuda")
    print("measuring the ceilings", file=sys.stderr, flush=True)
    before = ceilings_of(dtype, device, timing.measure)
    settings = {"dtype": dtype_name, "batch": list(batches), "ceilings": asdict(before)}
    run = new_run("kernels", command, {"name": torch.cuda.get_device_name()}, settings)
    run["timed"] = {"call": TIMED}
    architecture = tiles.architecture_of(device)
    for op in ops:
        if not workloads.runs_on(op, architecture):
            reason = f"compute capability {architecture / 10} lacks what it needs"
            run["unavailable"].append({"engine": op, "reason": reason})
            continue
        for workload in workloads.of_op(op, dtype, batches, widths or tuple(workloads.WIDTHS)):
            rivals = list(rivals_of(workload)) if with_rivals else [Rival(OURS, workload.launch)]
            arguments = timing.copies(workload.arguments(device), device)
            tile = dict(workload.tile_on(device))
            run["rows"] += [
                row | {"batch": workload.batch, "tile": tile if row["provider"] == OURS else None}
                for row in rows_of(workload, rivals, arguments, before, timing.capture)
            ]
            keep(run)
    print("measuring the ceilings again", file=sys.stderr, flush=True)
    _hold_against(run, before, ceilings_of(dtype, device, timing.measure))
    return run


def _hold_against(run: dict[str, Any], before: Ceilings, after: Ceilings) -> None:
    """Make the shares of a run those of the better of two readings of the ceilings: one alone was 12 % too low."""
    best = before.best(after)
    run["settings"] |= {"ceilings": asdict(best), "ceilings_read": [asdict(before), asdict(after)]}
    for row in run["rows"]:
        if row["ms_p50"]:
            row["share"] = best.share(row["op"], row["tflops"], row["gb_per_s"])
