"""The builder itself: a graph and options in, the bytes of a plan and what it holds out. Nothing is written here."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto

from segmenter.errors import EngineError
from segmenter_engines.asked import Asked, asked
from segmenter_engines.build_progress import Watcher, monitor, run_stoppable
from segmenter_engines.cut import cut
from segmenter_engines.gpu_targets import gpu_here, set_targets
from segmenter_engines.layer_report import layers_in_json, layers_in_text, with_ops
from segmenter_engines.layer_roles import Layer
from segmenter_engines.plugin_library import load_plugins
from segmenter_engines.shape_profile import Profile
from segmenter_engines.tensorrt_api import builder_log, strongly_typed_network, tensorrt
from segmenter_engines.timing_cache import attach, cache_file, keep

LEVELS = range(6)
DEFAULT_LEVEL = 3  # of TensorRT 10, 11 and RTX 1.7


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is built, apart from its shapes and outputs; see `build`."""

    engine: str
    precision: str
    workspace_bytes: int | None
    level: int | None
    timing_caches: Path | None  # their folder
    plugin_library: Path | None
    plugins: tuple[str, ...]  # ops the graph needs
    gpus: tuple[str, ...]
    refit: bool


@dataclass(frozen=True)
class Built:
    """A plan in memory."""

    plan: memoryview
    version: str  # of the runtime
    asked: Asked
    layers: tuple[Layer, ...]
    told_by: str  # "engine inspector" or "builder's log"
    compute_capabilities: tuple[str, ...]


def build_in_memory(
    source: Path,
    profile: Profile,
    outputs: Sequence[str],
    options: PlanOptions,
    *,
    watcher: Watcher | None,
    say: Callable[[str], None],
) -> Built:
    """Build a plan of an ONNX file; Ctrl-C ends it at the builder's next step.

    Raises EngineError when it cannot be parsed or built, naming the node where it is known, Unavailable without the
    engine's package.
    """
    engine = options.engine
    trt, log = tensorrt(engine), builder_log(engine)
    log.clear()
    try:
        load_plugins(trt, engine, options.plugin_library, options.plugins, log)
        builder = _builder(trt, engine, log)
        network = strongly_typed_network(trt, builder)
        graph, whole = _graph(source, engine, outputs)
        # held until the plan is built: the network refers to its parser's weights
        parser = _parsed(trt, network, log, source, None if whole else graph, engine)
        name = _shape_input(network, profile)
        config = _config(trt, builder, options)
        capabilities = set_targets(trt, config, engine, options.gpus, options.precision)
        shapes = builder.create_optimization_profile()
        shapes.set_shape(name, *profile.shapes())
        config.add_optimization_profile(shapes)
        cache = _attach_cache(trt, config, options, log, say)
        plan = _run(trt, builder, network, config, watcher)
        if plan is None:
            # RTX 1.7.1 compiles kernels that take other weights when it builds, and for that it needs a GPU
            advice = "; leave --refit out, or build on a GPU" if options.refit and not gpu_here()[0] else ""
            raise EngineError(f"{source}: {engine} cannot build it: {log.errors() or 'no reason given'}{advice}")
        del parser
        if cache is not None:
            keep(config, cache, say)
        lines = [line for _, text in log.messages for line in text.splitlines()]
        layers, told_by = _layers(trt, engine, plan, lines, log, [name], outputs)
    finally:
        log.clear()  # some megabytes
    wanted = asked(graph.graph)
    return Built(memoryview(plan), trt.__version__, wanted, with_ops(wanted, layers), told_by, capabilities)


def _builder(trt: Any, engine: str, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # a null pointer, to pybind11
        raise EngineError(
            f"engine {engine}: its builder does not start: {log.errors() or error}; check the GPU and its driver, or"
            " use --engine tensorrt-rtx, which builds without"
        ) from error


def _graph(source: Path, engine: str, outputs: Sequence[str]) -> tuple[onnx.ModelProto, bool]:
    """The graph with those outputs alone and what they need, and whether that is the file as it stands.

    An output merely unmarked in the network will not do: uint8, as labels are, is for inputs and outputs alone.
    """
    try:
        model = onnx.load(source)
    except DecodeError as error:
        raise EngineError(f"{source}: {engine} cannot parse it: no ONNX graph; export it again") from error
    whole = {output.name for output in model.graph.output} <= set(outputs)
    if not whole:
        cut(model.graph, outputs)
    return model, not _widen_labels(model.graph) and whole


def _widen_labels(graph: onnx.GraphProto) -> bool:
    """Turn labels of more than 256 classes, int16, into int32, for TensorRT has no int16; whether there were any."""
    labels = [value for value in (*graph.value_info, *graph.output) if _is_int16(value)]
    for value in labels:
        value.type.tensor_type.elem_type = TensorProto.INT32
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.INT16:
                attribute.i = TensorProto.INT32
    return bool(labels)


def _is_int16(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.INT16)


def _parsed(trt: Any, network: Any, log: Any, source: Path, part: onnx.ModelProto | None, engine: str) -> Any:
    parser = trt.OnnxParser(network, log)
    if not (parser.parse(part.SerializeToString()) if part else parser.parse_from_file(str(source))):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"{fault.node_name()}: {' '.join(fault.desc().split())}" for fault in faults[:3])
        raise EngineError(f"{source}: {engine} cannot parse it: {told or log.errors()}")
    return parser


def _shape_input(network: Any, profile: Profile) -> str:
    """Fix in the network what the profile fixes, so that a plan of one shape is built as such; returns the name."""
    tensor = network.get_input(0)
    tensor.shape = profile.fixed()
    name: str = tensor.name
    return name


def _config(trt: Any, builder: Any, options: PlanOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers with their types, for the report
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # of TensorRT-RTX: a plan that takes memory of its own as it runs cannot be captured as a CUDA graph
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config


def _attach_cache(trt: Any, config: Any, options: PlanOptions, log: Any, say: Callable[[str], None]) -> Path | None:
    if options.timing_caches is None:
        return None
    level = DEFAULT_LEVEL if options.level is None else options.level
    file = cache_file(options.timing_caches, options.engine, trt.__version__, gpu_here()[0], level)
    attach(config, file, log, say)
    return file


def _run(trt: Any, builder: Any, network: Any, config: Any, watcher: Watcher | None) -> Any:
    stop = threading.Event()
    watched = monitor(trt, watcher, stop)
    config.progress_monitor = watched
    # the current GPU is each thread's own matter
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def work() -> Any:
        if device is not None:
            torch.cuda.set_device(device)
        return builder.build_serialized_network(network, config)

    return run_stoppable(work, stop)


def _layers(
    trt: Any, engine: str, plan: Any, lines: Sequence[str], log: Any, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[tuple[Layer, ...], str]:
    if torch.cuda.is_available():
        inspected = _inspected(trt, engine, plan, log, inputs, outputs)
        if inspected:
            return inspected, "engine inspector"
    return layers_in_text(lines, inputs, outputs), "builder's log"


def _inspected(
    trt: Any, engine: str, plan: Any, log: Any, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[Layer, ...]:
    """Layers by the plan's own inspector; () where this GPU does not load it."""
    runtime = trt.Runtime(log)
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        return ()
    inspector = loaded.create_engine_inspector()
    if engine == "tensorrt":
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return layers_in_json(text, inputs, outputs)
    # RTX's builder logs this very text
    text = inspector.get_engine_information(trt.LayerInformationFormat.ONELINE)
    return layers_in_text(text.splitlines(), inputs, outputs)
