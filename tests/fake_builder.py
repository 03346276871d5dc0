"""A `tensorrt` that builds nothing and remembers what it was told: 10 and 11 as headers and bindings describe them.

What the two do otherwise: in 10 a network is weakly typed unless asked, precision flags exist, and an inspector names
types in `Format/Datatype`; in 11 every network is strongly typed, the flags are gone, values of enums moved, and types
stand in `DataType`.
"""

import json
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx

HEADER = 64


def fake_tensorrt(version: str) -> ModuleType:
    """A module for `sys.modules["tensorrt"]`; `module.builds` holds what was built, newest last."""
    module: Any = ModuleType("tensorrt")
    major = int(version.partition(".")[0])
    module.__version__ = version
    module.builds = []
    module.plugins = []
    module.refuses_cache = False

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        pass

    class Registry:
        all_creators: tuple[Any, ...] = ()

        def load_library(self, path: str) -> object | None:
            module.plugins.append(path)
            if Path(path).read_bytes() != b"plugins":
                return None
            self.all_creators = (SimpleNamespace(name="SegmenterAttention"),)
            return object()

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def serialize(self) -> bytes:
            return self.data

    class Config:
        def __init__(self, log: ILogger) -> None:
            self._log = log
            self.flags: set[Any] = set()
            self.pools: dict[Any, int] = {}
            self.cache: TimingCache | None = None
            self.profiles: list[Any] = []
            self.builder_optimization_level = 3
            self.hardware_compatibility_level = None
            self.progress_monitor: Any = None
            self.profiling_verbosity = None

        def set_flag(self, flag: Any) -> None:
            self.flags.add(flag)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.pools[pool] = size

        def add_optimization_profile(self, profile: Any) -> None:
            self.profiles.append(profile)

        def create_timing_cache(self, data: bytes) -> TimingCache:
            if data and not data.startswith(b"timings"):
                self._log.log(ILogger.ERROR, "timing cache: bad magic")
                data = b""
            return TimingCache(data)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            if cache.data and module.refuses_cache and not ignore_mismatch:
                return False
            self.cache = cache
            return True

        def get_timing_cache(self) -> TimingCache | None:
            return self.cache

    class Profile:
        def set_shape(self, name: str, *shapes: Any) -> None:
            self.name, self.shapes = name, shapes

    class Network:
        def __init__(self, strong: bool) -> None:
            self.strong = strong
            self.inputs: list[Any] = []
            self.outputs: list[Any] = []

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

    class OnnxParser:
        def __init__(self, network: Network, log: ILogger) -> None:
            self._network = network
            self.num_errors = 0

        def parse_from_file(self, path: str) -> bool:
            return self.parse(Path(path).read_bytes())

        def parse(self, model: bytes) -> bool:
            graph = onnx.load_model_from_string(model).graph
            self._network.inputs = [SimpleNamespace(name=one.name, shape=None) for one in graph.input]
            self._network.outputs = [SimpleNamespace(name=one.name) for one in graph.output]
            self._network.graph = graph
            return True

    class Builder:
        def __init__(self, log: ILogger) -> None:
            self._log = log

        def create_network(self, flags: int = 0) -> Network:
            return Network(major >= 11 or bool(flags >> int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1))

        def create_builder_config(self) -> Config:
            return Config(self._log)

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            config.progress_monitor.phase_start("Timing", None, 3)
            for step in range(3):
                if not config.progress_monitor.step_complete("Timing", step):
                    self._log.log(ILogger.ERROR, "BuildCanceled")
                    return None
            config.progress_monitor.phase_finish("Timing")
            if config.cache is not None:
                config.cache.data = config.cache.data or b"timings of this GPU"
            module.builds.append(SimpleNamespace(network=network, config=config))
            head = b"ftrt" + bytes(20) + bytes(int(part) for part in version.split(".")[:4])
            return head.ljust(HEADER, b"\0")

    class Runtime:
        def __init__(self, log: ILogger) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            graph = module.builds[-1].network.graph
            inspector = SimpleNamespace(get_engine_information=lambda kind: json.dumps(_inspected(graph, major)))
            return SimpleNamespace(create_engine_inspector=lambda: inspector)

    registry = Registry()
    module.get_plugin_registry = lambda: registry
    for kind in (ILogger, IProgressMonitor, OnnxParser, Builder, Runtime):
        setattr(module, kind.__name__, kind)
    network_flags = {"STRONGLY_TYPED": 0} if major >= 11 else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    module.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", network_flags)
    flags = ["DEBUG", "REFIT"] if major >= 11 else ["FP16", "INT8", "DEBUG", "REFIT"]
    module.BuilderFlag = IntEnum("BuilderFlag", flags)
    module.MemoryPoolType = IntEnum("MemoryPoolType", ["WORKSPACE"])
    module.ProfilingVerbosity = IntEnum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"])
    module.HardwareCompatibilityLevel = IntEnum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"])
    module.LayerInformationFormat = IntEnum("LayerInformationFormat", ["ONELINE", "JSON"])
    return module


def _inspected(graph: onnx.GraphProto, major: int) -> dict[str, Any]:
    """Every product of a graph as a layer of its own, in fp16, and every softmax as a fused attention."""

    def tensor(name: str, shape: list[int], kind: str = "Half") -> dict[str, Any]:
        if major >= 11:
            return {"Name": name, "Dimensions": shape, "DataType": kind, "Format": "Row major linear format"}
        long = {"Half": "Row major linear FP16 format", "Float": "Row major linear FP32"}[kind]
        return {"Name": name, "Dimensions": shape, "Format/Datatype": long}

    layers: list[dict[str, Any]] = [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0",
            "LayerType": "Reformat",
            "Inputs": [tensor("images", [1, 3, 56, 72], "Float")],
            "Outputs": [tensor("reformatted", [1, 3, 56, 72])],
            "Metadata": "",
        }
    ]
    for node in graph.node:
        sides = {"Inputs": [tensor(node.input[0], [-1, 64])], "Outputs": [tensor(node.output[0], [-1, 64])]}
        told = {"Metadata": f"[ONNX Layer: {node.name}]"}
        if node.op_type == "MatMul":
            layers.append({"Name": node.name, "LayerType": "gemm", **sides, **told})
        elif node.op_type == "Softmax":
            layers.append({"Name": f"_gemm_mha_v2_{node.name}", "LayerType": "kgen", **sides, **told})
    ends = {"I/O Tensors": []} if major >= 11 else {"Bindings": ["images", "labels"]}
    return {"Layers": layers, **ends}
