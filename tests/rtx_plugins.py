"""`python -m tests.rtx_plugins LIBRARY GRAPH`: plugins loaded into TensorRT-RTX, a plan built; what came of it."""

import json
import os
import sys
import tempfile
from typing import Any

import tensorrt_rtx as trt


class Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        self.lines += message.splitlines()


def build(library: str, graph: str) -> dict[str, Any]:
    log, registry = Log(), trt.get_plugin_registry()
    registry.load_library(library)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    plan = b""
    if parser.parse_from_file(graph):
        profile, config = builder.create_optimization_profile(), builder.create_builder_config()
        _, _, H, W = network.get_input(0).shape
        profile.set_shape("images", *((batch, 3, H, W) for batch in (1, 1, 8)))
        config.add_optimization_profile(profile)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        plan = bytes(builder.build_serialized_network(network, config) or b"")
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    ours = [each for each in registry.all_creators if each.name.startswith("Segmenter")]
    return {
        "creators": {each.name: [each.plugin_namespace, each.plugin_version] for each in ours},
        "plugin_layers": sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers),
        "custom_layers": sum(line.startswith("Name: ") and "LayerType: custom_layer" in line for line in log.lines),
        "outputs": {each.name: [each.dtype.name, list(each.shape)] for each in outputs},
        "plan_bytes": len(plan),
        "in_plan": {each.name: plan.count(each.name.encode()) for each in ours},
    }


if __name__ == "__main__":
    # the plugins' own messages go to the standard error output
    with tempfile.TemporaryFile() as stderr:
        os.dup2(stderr.fileno(), 2)
        told = build(sys.argv[1], sys.argv[2])
        stderr.seek(0)
        told["stderr"] = stderr.read().decode()
    print(json.dumps(told))
