"""ONNX to a TensorRT-RTX plan, strongly typed, on any machine: building needs no GPU.

Precision is what the graph's tensors and Q/DQ nodes say; there are no precision flags. The builder's own account of
what it made (layers, fused attention kernels, int8 products) goes into the manifest, because a quantised ViT whose
attention is no longer fused is slower than fp16 and nothing else would show it.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from segmenter.cli import run
from segmenter.errors import EngineError
from segmenter.files import atomic_path, sha256
from segmenter_engines.manifest import (
    Manifest,
    command_line,
    derived_from,
    machine_name,
    read_manifest,
    require_out,
    versions_of,
)
from segmenter_engines.tensorrt_api import builder_log, strongly_typed_network, tensorrt

ENGINE = "tensorrt-rtx"


def build(
    source: Path | str,
    out: Path | str,
    *,
    batch: tuple[int, int, int] = (1, 1, 8),
    outputs: Sequence[str] = ("labels",),
    workspace_bytes: int | None = None,
) -> Manifest:
    """Build a plan from an exported or quantised graph, with its manifest beside it.

    source: fp16 or bf16 .onnx, or int8 made for the tensorrt target; fp32 builds too. batch: min, opt and max batch of
    the plan. outputs: of the graph's, those the plan keeps. workspace_bytes: limit of the builder's scratch memory, at
    least 1 MiB; None for no limit. The plan runs on Ampere and later GPUs.
    Raises EngineError when an option is out of range, or the graph does not fit, cannot be parsed or built, naming the
    node where it is known.
    """
    source, out = Path(source), Path(out)
    require_out(out, ".plan", source)
    if workspace_bytes is not None and not 1 << 20 <= workspace_bytes <= 1 << 50:
        raise EngineError(f"workspace of {workspace_bytes >> 20} MiB: wanted 1 to {1 << 30}; leave it out for no limit")
    base = read_manifest(source)
    _check(base, source, batch, outputs)
    trt, log = tensorrt(ENGINE), builder_log(ENGINE)
    log.clear()
    builder = trt.Builder(log)
    network = strongly_typed_network(trt, builder)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source)):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"{fault.node_name()}: {' '.join(fault.desc().split())}" for fault in faults[:3])
        raise EngineError(f"{source}: {ENGINE} cannot parse it: {told or log.errors()}")
    for index in reversed(range(network.num_outputs)):
        tensor = network.get_output(index)
        if tensor.name not in outputs:
            network.unmark_output(tensor)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((count, 3, *base.size) for count in batch))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{source}: {ENGINE} cannot build it: {log.errors() or 'no reason given'}")
    with atomic_path(out) as temporary:
        temporary.write_bytes(memoryview(plan))
    manifest = replace(
        base,
        artifact=out.name,
        kind="plan",
        engine=ENGINE,
        sha256=sha256(out),
        source=derived_from(base),
        batch=batch,
        outputs=tuple(outputs),
        command=command_line(),
        versions=versions_of("onnx") | {ENGINE: trt.__version__},
        machine=machine_name(),
        verification=None,
        details={**base.details, "layers": layer_report([text for _, text in log.messages])},
    )
    manifest.write(out)
    return manifest


def layer_report(messages: Sequence[str]) -> dict[str, int]:
    """What the builder made, counted from its log: layers, fused attention kernels, products by input type."""
    layers = [line for text in messages for line in text.splitlines() if line.startswith("Name: ")]
    report = {"total": len(layers), "fused_attention": 0}
    for line in layers:
        name = line.split(",")[0]
        if "mha" in name:
            report["fused_attention"] += 1
        elif "LayerType: gemm" in line or "LayerType: runtime_fusion" in line:
            types = re.search(r"Inputs: \[.*?Datatype: (\w+)", line)
            if types:
                key = f"products_{types[1].lower()}"
                report[key] = report.get(key, 0) + 1
    return report


def _check(base: Manifest, source: Path, batch: tuple[int, int, int], outputs: Sequence[str]) -> None:
    if base.kind != "onnx":
        raise EngineError(f"{source}: is a {base.kind} already; build from the .onnx it was made of")
    if base.precision == "int8" and base.details.get("target") != "tensorrt":
        raise EngineError(
            f"{source}: int8 with uint8 activations, which TensorRT does not take; quantise an fp16 export with"
            " --target tensorrt"
        )
    if not 1 <= batch[0] <= batch[1] <= batch[2] <= base.batch[2]:
        raise EngineError(f"batch {batch}: wanted min <= opt <= max, from 1 to {base.batch[2]}")
    unknown = sorted(set(outputs) - set(base.outputs))
    if unknown or not outputs:
        raise EngineError(f"outputs {unknown or '()'}: the graph has {', '.join(base.outputs)}")


@dataclass(frozen=True)
class Options:
    """Build a TensorRT-RTX plan from an exported graph; no GPU needed."""

    source: Annotated[Path, tyro.conf.Positional]
    """The .onnx: an fp16 or bf16 export, or one quantised with --target tensorrt."""
    out: Path
    """The .plan file to write; its manifest goes beside it."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """Smallest, usual and largest batch."""
    outputs: tuple[str, ...] = ("labels",)
    """Outputs of the graph the plan keeps: labels, masks, logits."""
    workspace_mib: int | None = None
    """Limit of the builder's scratch memory in MiB, at least 1; none when left out."""


def build_plan(options: Options) -> int:
    limit = options.workspace_mib
    manifest = build(
        options.source,
        options.out,
        batch=options.batch,
        outputs=options.outputs,
        workspace_bytes=None if limit is None else limit << 20,
    )
    layers = manifest.details["layers"]
    print(
        f"{options.out}: {manifest.precision}, {options.out.stat().st_size / 1e6:.1f} MB,"
        f" {layers['total']} layers, {layers['fused_attention']} fused attention kernels;"
        f" TensorRT-RTX {manifest.versions[ENGINE]}"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_plan, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
