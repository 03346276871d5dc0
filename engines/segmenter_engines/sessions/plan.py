"""Plans on the GPU: deserialised once a file and device, shared by every session that runs them."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from segmenter.errors import EngineError
from segmenter_engines.manifest import PIXELS, Manifest, rebuild_command
from segmenter_engines.plan_checks import check_plan
from segmenter_engines.plugin_library import load_plugins
from segmenter_engines.sessions.device import Device, Memory
from segmenter_engines.sessions.runtime_cache import cache_file, keep, load
from segmenter_engines.tensorrt_api import builder_log, product, tensorrt

INPUT = "images"
# TensorRT's types by name, for their values move between releases; it has no int16, so labels of many classes are int32
TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
}

_OPEN: dict[tuple[str, str, str, int], "Plan"] = {}
_LOCK = Lock()


class Plan:
    """A deserialised plan; sessions in any thread make contexts of it. Made by `acquire`, given back by `release`."""

    def __init__(
        self, key: tuple[str, str, str, int], trt: Any, path: Path, manifest: Manifest, plan: bytes, gpu: str
    ) -> None:
        """gpu: the name of the device's."""
        self.key, self.sessions, self.trt = key, 0, trt
        self.name = product(manifest.engine).name
        log = builder_log(manifest.engine)
        log.clear()
        self._runtime: Any = trt.Runtime(log)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"{path}: {self.name} cannot load it: {log.errors() or 'no reason given'}")
        types = {name: self._engine.get_tensor_dtype(name).name for name in self._names()}
        unknown = sorted(f"{name} {kind}" for name, kind in types.items() if kind not in TYPES)
        wanted = {INPUT: "UINT8" if manifest.input == PIXELS else "FLOAT"}
        if unknown or set(types) != {INPUT, *manifest.outputs} or types[INPUT] != wanted[INPUT]:
            raise EngineError(
                f"{path}: its manifest says {manifest.input} in, {', '.join(manifest.outputs)} out, the plan itself"
                f" {', '.join(f'{name} {kind}' for name, kind in types.items())}; {rebuild_command(path, manifest)}"
            )
        self._pixels = manifest.input == PIXELS
        self.types = {name: np.dtype(TYPES[kind]) for name, kind in types.items()}
        self.outputs = tuple(name for name in types if name != INPUT)
        # 10.0 has the first alone
        name = "device_memory_size_v2" if hasattr(self._engine, "device_memory_size_v2") else "device_memory_size"
        self.scratch_bytes = int(getattr(self._engine, name))
        self._cache: Any = None
        self._gpu, self._loaded = gpu, b""
        self._configs: dict[bool, Any] = {}  # by `fixed_kernels`: contexts refer to theirs
        self._lock = Lock()

    def context(self, scratch: Memory, fixed_kernels: bool) -> Any:
        """A context that computes in `scratch`, which contexts may share that never run at once.

        fixed_kernels: whether each shape shall keep the kernels it begins with, as a graph of them will.
        Raises EngineError when there can be none.
        """
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._lock:
            if self.key[0] == "tensorrt-rtx":
                strategy = self._config(strategy, fixed_kernels)
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"{self.name} makes no context: {self.complaint()}")
        context.set_device_memory(scratch.pointer, self.scratch_bytes)
        return context

    def sides(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(B, H, W) of a shape of the input."""
        B, *rest = shape
        return (B, rest[0], rest[1]) if self._pixels else (B, rest[1], rest[2])

    def require_profile(self, path: Path, manifest: Manifest) -> None:
        """See that the profile takes every size and batch of a manifest, before the first image would show it.

        Raises EngineError naming both.
        """
        ends = self._engine.get_tensor_profile_shape(INPUT, 0) or [self._engine.get_tensor_shape(INPUT)]  # of one shape
        taken = zip(self.sides(ends[0]), self.sides(ends[-1]), strict=True)
        said = {"batch": manifest.batch, "height": manifest.height, "width": manifest.width}
        for (name, (low, _, high)), (least, most) in zip(said.items(), taken, strict=True):
            if not least <= low <= high <= most:
                raise EngineError(
                    f"{path}: its manifest says {name} {_text(low, high)}, its profile takes {_text(least, most)};"
                    f" {rebuild_command(path, manifest)}"
                )

    def complaint(self) -> str:
        """What the runtime has logged of errors."""
        return builder_log(self.key[0]).errors() or "no reason given"

    def quieten(self) -> None:
        """Forget what the runtime has logged: a service runs for months, and it may have a word to every enqueue."""
        builder_log(self.key[0]).clear()

    def close(self) -> None:
        # an engine goes before the runtime that made it, and what was made of it before it
        if self._cache is not None:
            keep(self._cache, cache_file(self.key[1], self._gpu), self._loaded)
        self._configs.clear()
        self._cache = self._engine = None
        self._runtime = None

    def _config(self, strategy: Any, fixed_kernels: bool) -> Any:
        """TensorRT-RTX compiles kernels when a context is made; the cache has the next find them."""
        if fixed_kernels not in self._configs:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            kinds = self.trt.DynamicShapesKernelSpecializationStrategy
            # lazily, kernels compiled meanwhile replace the first ones, and a graph would never see them
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if fixed_kernels else kinds.LAZY
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                self._loaded = load(self._cache, cache_file(self.key[1], self._gpu))
            config.set_runtime_cache(self._cache)
            self._configs[fixed_kernels] = config
        return self._configs[fixed_kernels]

    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]


def _text(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def acquire(path: Path, manifest: Manifest, content: bytes, device: Device, plugins: Path | None) -> Plan:
    """The plan of a file on a device, checked and deserialised unless a session has it open already.

    content: of the file, by `read_plan`. plugins: the library that serves its custom ops. To be called with the device
    current.
    Raises EngineError when the plan may not run here or cannot be loaded, Unavailable when the runtime is missing.
    """
    trt = tensorrt(manifest.engine)
    key = (manifest.engine, manifest.sha256, device.name, device.index)
    # held while one is deserialised: whoever asks for the same meanwhile wants to share it
    with _LOCK:
        check_plan(path, manifest, content, trt.__version__, device.capability, plugins, device.gpu)
        plan = _OPEN.get(key)
        if plan is None:
            if manifest.plugins:
                load_plugins(trt, manifest.engine, plugins, manifest.plugins, builder_log(manifest.engine))
            plan = Plan(key, trt, path, manifest, content, device.gpu)
        try:
            plan.require_profile(path, manifest)  # of every session: another manifest may name the same plan
        except EngineError:
            if not plan.sessions:
                plan.close()
            raise
        _OPEN[key] = plan
        plan.sessions += 1
        return plan


def release(plan: Plan) -> None:
    """One session less; the last one closes the plan."""
    with _LOCK:
        plan.sessions -= 1
        if not plan.sessions:
            del _OPEN[plan.key]
            plan.close()
