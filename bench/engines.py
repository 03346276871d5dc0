"""Every engine that can be benched, by name: which artifact of an engine folder it opens, and with what.

An engine folder is what `segmenter pipeline` fills: `checkpoint/` (config.json, model.safetensors), the exported
`model.*.onnx` and the built `model.*.plan`, each with its manifest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from segmenter.errors import ConfigError, EngineError
from segmenter_engines.folder import CHECKPOINT, FP32, INT8, PLAN_FP16, PLAN_INT8, why_missing


class Engine(Protocol):
    """What the bench asks of an open engine; every `segmenter_engines.Session` is one."""

    def __call__(self, images: np.ndarray) -> np.ndarray: ...
    def masks(self, x: np.ndarray) -> np.ndarray: ...
    def describe(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Entry:
    """One row of the table. opener: `module:function` called with (artifact, engine, precision, threads)."""

    name: str
    artifact: str  # inside the engine folder
    engine: str
    precision: str  # what limits its agreement: fp32, bf16, fp16 or int8; "" to ask the open engine
    floats: str | None = None  # passed on as the session's precision
    opener: str = "segmenter_bench.engines:open_with_session"
    compared: bool = True  # with PyTorch's labels; False for another network, shown for its speed alone


RIVALS = ("official", "official-channels-last", "official-inference")  # the same network, the official way
RUNGS = ("eager-fused-labels", "gpu-explicit", "gpu-sdpa", "gpu-kernels", "gpu-kernels-labels")  # of the ladder alone
TABLE = (
    *(Entry(name, CHECKPOINT, name, "fp32", opener="segmenter_bench.engines:open_official") for name in RIVALS),
    Entry("eager", CHECKPOINT, "eager", "fp32"),
    *(
        Entry(
            name,
            CHECKPOINT,
            name,
            "fp16" if name.startswith("gpu-") else "fp32",
            opener="segmenter_bench.rungs:open_rung",
        )
        for name in RUNGS
    ),
    Entry("compiled", CHECKPOINT, "compiled", "fp32"),
    *(
        Entry(f"triton-{precision}", CHECKPOINT, "triton", precision, precision)
        for precision in ("fp16", "int8", "fp8")
    ),
    Entry("onnxruntime-fp32", FP32, "onnxruntime", "fp32"),
    Entry("onnxruntime-int8", INT8, "onnxruntime", "int8"),
    Entry("openvino-fp32", FP32, "openvino", "fp32", "fp32"),
    Entry("openvino-bf16", FP32, "openvino", "bf16", "bf16"),
    Entry("openvino-int8", INT8, "openvino", "int8"),
    Entry("tensorrt-rtx-fp16", PLAN_FP16, "tensorrt-rtx", "fp16"),
    Entry("tensorrt-rtx-int8", PLAN_INT8, "tensorrt-rtx", "int8"),
    # the same files, where they were built for the other runtime
    Entry("tensorrt-fp16", PLAN_FP16, "tensorrt", "fp16"),
    Entry("tensorrt-int8", PLAN_INT8, "tensorrt", "int8"),
    Entry("eomt-style", CHECKPOINT, "eomt-style", "", opener="segmenter_bench.eomt:open_eomt", compared=False),
)
REFERENCE = "official"  # ratios are against it
TRUTH = "eager"  # labels are compared with its


def entries() -> tuple[Entry, ...]:
    """The table, and a row for each engine of the sessions registry that the table does not mention yet."""
    from segmenter_engines import ENGINES

    known = {entry.engine for entry in TABLE}
    return (*TABLE, *(Entry(name, CHECKPOINT, name, "") for name in ENGINES if name not in known))


def choose(names: Sequence[str]) -> tuple[Entry, ...]:
    """Rows by name, in the table's order; 'all' is every row and a prefix such as 'openvino' is its family.

    Raises ConfigError for a name that matches none.
    """
    rows = entries()
    wanted = {matching for name in names for matching in _matching(name, rows)}
    return tuple(row for row in rows if row.name in wanted)


def missing(names: Sequence[str], unavailable: Sequence[str]) -> list[str]:
    """Those of `names` that someone asked for and no engine answers to; what 'all' would have liked may be missing."""
    return [name for name in names if name != "all" and _matching(name, entries()) <= set(unavailable)]


def _matching(name: str, rows: Sequence[Entry]) -> set[str]:
    matching = {row.name for row in rows if name in ("all", row.name) or row.name.startswith(f"{name}-")}
    if not matching:
        known = ", ".join(row.name for row in rows)
        raise ConfigError(f"engine {name!r} is unknown; choose 'all' or some of {known}")
    # 'official' names one row, not its variants
    return {name} if name in matching else matching


def misfit(entry: Entry, size: tuple[int, int]) -> str | None:
    """Why an engine has no comparable answer for images of a size (H, W), in one line; None where it has."""
    if entry.name == "official-inference" and size[0] != size[1]:
        return f"cuts {size[0]}x{size[1]} images into square windows, so its labels are others; square images compare"
    return None


def open_entry(entry: Entry, folder: Path, threads: int) -> Engine:
    """Open the engine of a row on the artifact of an engine folder.

    Raises EngineError, in one line, when the artifact is not there or the engine cannot run here.
    """
    artifact = folder / entry.artifact
    if not artifact.exists():
        raise EngineError(why_missing(artifact))
    module, _, function = entry.opener.partition(":")
    opener = cast(Callable[[Path, str, str | None, int], Engine], getattr(import_module(module), function))
    return opener(artifact, entry.engine, entry.floats, threads)


def open_with_session(artifact: Path, engine: str, floats: str | None, threads: int) -> Engine:
    """Through `segmenter_engines.sessions.open_engine`: whoever benches judges its labels in the same run."""
    from segmenter_engines.sessions import open_engine

    return open_engine(artifact, engine, threads=threads, precision=floats)


def open_official(artifact: Path, engine: str, floats: str | None, threads: int) -> Engine:
    """One of the rivals of `segmenter_bench.rivals`."""
    from segmenter_bench import rivals

    if engine == "official-inference":
        return rivals.OfficialInference(artifact, threads)
    layout = rivals.channels_last_layout if engine == "official-channels-last" else rivals.classic_layout
    return rivals.Official(artifact, threads, layout)
