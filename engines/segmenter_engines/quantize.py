"""ONNX to Q/DQ ONNX: the linear layers in int8, everything else as it was.

What is quantised is a choice that was measured: attention products and the tail (class projections, mask scores, last
norms) stay in floating point, because quantising them costs accuracy and, in TensorRT, the fused attention.
`cpu` targets (ONNX Runtime, OpenVINO) get uint8 activations with a zero point; TensorRT takes symmetric int8 only.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import onnx
import tyro
from onnx import NodeProto, TensorProto, helper, numpy_helper

from segmenter.cli import run
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.datasets.fitted import fit
from segmenter.errors import EngineError
from segmenter.files import atomic_path, sha256
from segmenter.preprocess import normalize
from segmenter_engines.calibrate import Method, Range, channel_peaks, ranges
from segmenter_engines.manifest import (
    PIXELS,
    Manifest,
    command_line,
    derived_from,
    machine_name,
    read_manifest,
    require_out,
    versions_of,
)
from segmenter_engines.smooth import norm_fed, smooth

Target = Literal["cpu", "tensorrt"]
SMOOTHING = 0.5  # exact in floating point; on a fine-tuned ViT-S it halved the mIoU int8 lost, and more
# class projections, of the mask decoder and of the linear one: kept in floating point
TAIL = ("decoder.proj_patch", "decoder.proj_classes", "decoder.head")


@dataclass(frozen=True)
class Linear:
    """A MatMul with a constant right side [I, O]."""

    node: NodeProto
    activation: str
    weight: str


def linears(graph: onnx.GraphProto, exclude: Sequence[str] = ()) -> list[Linear]:
    """The linear layers worth int8, in graph order, without those whose weight's name holds a word of `exclude`.

    Words are whole parts of a name: blocks.1 is in encoder.blocks.1.mlp.fc1.weight, not in encoder.blocks.10.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return [
        Linear(node, node.input[0], node.input[1])
        for node in graph.node
        if node.op_type == "MatMul"
        and node.input[1] in constants
        and len(constants[node.input[1]].dims) == 2
        and not any(names(word, node.input[1]) for word in (*TAIL, *exclude))
    ]


def names(word: str, weight: str) -> bool:
    """Whether a word is a part of a weight's name, or several in a row."""
    return f".{word}." in f".{weight}."


def quantize(
    source: Path | str,
    out: Path | str,
    images: Iterable[np.ndarray],
    *,
    target: Target = "cpu",
    method: Method = "minmax",
    percentile: float = 99.99,
    smoothing: float = SMOOTHING,
    exclude: Sequence[str] = (),
    threads: int | None = None,
) -> Manifest:
    """Write the int8 version of an exported graph, with its manifest beside it.

    images: calibration images, uint8 RGB [H, W, 3] of the graph's size. Weights become int8 a channel, activations 8
    bits a tensor (see the module). `tensorrt` wants an fp16 or bf16 graph, `cpu` an fp32 one. exclude: words such as
    fc2, decoder, encoder.blocks.0; linear layers whose weight's name holds one stay in floating point.
    Raises EngineError for an `out` that is `source` or no .onnx, a graph that fits not the target, has no manifest or
    no linear layers, a word of `exclude` that no layer has, another option out of range, or without images.
    """
    source, out = Path(source), Path(out)
    require_out(out, ".onnx", source)
    base = read_manifest(source)
    if (base.precision == "fp32") != (target == "cpu") or base.kind != "onnx":
        raise EngineError(
            f"{source}: a {base.precision} {base.kind} for target {target}; export it with --precision"
            f" {'fp32' if target == 'cpu' else 'fp16'} first"
        )
    model = onnx.load(source)
    chosen = _chosen(source, model.graph, exclude)
    if not 0.0 <= smoothing <= 1.0:
        raise EngineError(f"smoothing {smoothing}: wanted 0 (none) to 1")
    if not 50.0 < percentile <= 100.0:
        raise EngineError(f"percentile {percentile}: wanted above 50 and at most 100, typically 99.9 to 99.999")
    batches = [_batch(image, base) for image in images]
    if not batches:
        raise EngineError("no calibration images; pass at least one, typically 16 to 64")
    with atomic_path(out) as temporary:
        fed = norm_fed(model.graph, [layer.weight for layer in chosen]) if smoothing else {}
        if fed:
            smooth(model.graph, fed, channel_peaks(source, list(fed), batches, threads), smoothing)
        onnx.save(model, temporary)
        found = ranges(temporary, [layer.activation for layer in chosen], batches, method, percentile, threads)
        insert_qdq(model.graph, chosen, found, target)
        onnx.save(model, temporary)
        onnx.checker.check_model(temporary, full_check=True)
    manifest = replace(
        base,
        artifact=out.name,
        precision="int8",
        engine="any" if target == "cpu" else "tensorrt",
        sha256=sha256(out),
        source=derived_from(base),
        command=command_line(),
        versions=versions_of("onnx", "onnxruntime"),
        machine=machine_name(),
        verification=None,
        details={
            "target": target,
            "base_precision": base.precision,
            "layers": len(chosen),
            "excluded": list(exclude),
            "smoothing": smoothing,
            "calibration": {"images": len(batches), "method": method}
            | ({"percentile": percentile} if method != "minmax" else {}),
        },
    )
    manifest.write(out)
    return manifest


def _chosen(source: Path, graph: onnx.GraphProto, exclude: Sequence[str]) -> list[Linear]:
    everything = [layer.weight for layer in linears(graph)]
    for word in exclude:
        if not any(names(word, weight) for weight in everything):
            parts = sorted({part for weight in everything for part in weight.split(".") if not part.isdigit()})
            raise EngineError(
                f"--exclude {word}: no quantised layer of {source} has such a part in its name; the parts are"
                f" {', '.join(parts)}, and numbers as in {everything[0] if everything else 'blocks.0'}"
            )
    chosen = linears(graph, exclude)
    if not chosen:
        raise EngineError(f"{source}: no linear layer left to quantise; check --exclude {' '.join(exclude)}")
    return chosen


def _batch(image: np.ndarray, base: Manifest) -> np.ndarray:
    if image.shape[:2] != base.size:
        raise EngineError(
            f"calibration image {image.shape[0]}x{image.shape[1]}: the graph takes {base.size[0]}x{base.size[1]};"
            " resize it"
        )
    return image[None] if base.input == PIXELS else normalize(image, base.preprocess).numpy()


def insert_qdq(graph: onnx.GraphProto, chosen: Sequence[Linear], found: dict[str, Range], target: Target) -> None:
    """Rewrite `graph` in place: Q/DQ in front of each chosen layer, its weight in int8 behind a DequantizeLinear."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    real = constants[chosen[0].weight].data_type
    before: list[NodeProto] = []
    after: dict[str, list[NodeProto]] = {}
    quantised: dict[str, str] = {}
    for layer in chosen:
        if layer.activation not in quantised:
            nodes = _activation(graph, layer.activation, found[layer.activation], target, real)
            after[layer.activation] = nodes
            quantised[layer.activation] = nodes[-1].output[0]
        if layer.weight not in quantised:
            node = _weight(graph, constants[layer.weight], real)
            before.append(node)
            quantised[layer.weight] = node.output[0]
        layer.node.input[0] = quantised[layer.activation]
        layer.node.input[1] = quantised[layer.weight]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(before)
    for node in nodes:
        graph.node.append(node)
        for output in node.output:
            graph.node.extend(after.pop(output, ()))
    if after:
        raise EngineError(f"cannot quantise graph inputs {sorted(after)}; report this with the graph")
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _activation(graph: onnx.GraphProto, name: str, span: Range, target: Target, real: int) -> list[NodeProto]:
    if target == "cpu":
        scale = max(span.high - span.low, 1e-8) / 255.0
        zero = np.array(np.clip(np.round(-span.low / scale), 0, 255), np.uint8)
    else:
        scale = max(-span.low, span.high, 1e-8) / 127.0
        zero = np.array(0, np.int8)
    inputs = [_constant(graph, f"{name}/scale", np.array(scale), real), f"{name}/zero"]
    graph.initializer.append(numpy_helper.from_array(zero, inputs[1]))
    return [
        helper.make_node("QuantizeLinear", [name, *inputs], [f"{name}/q"], name=f"{name}/Q"),
        helper.make_node("DequantizeLinear", [f"{name}/q", *inputs], [f"{name}/dq"], name=f"{name}/DQ"),
    ]


def _weight(graph: onnx.GraphProto, tensor: TensorProto, real: int) -> NodeProto:
    name = tensor.name
    weight = numpy_helper.to_array(tensor).astype(np.float32)  # [I, O]
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-8) / 127.0
    inputs = [f"{name}/i8", _constant(graph, f"{name}/scale", scale, real), f"{name}/zero"]
    # round against the scale as the graph will hold it, not as it was before rounding to 16 bits
    held = numpy_helper.to_array(graph.initializer[-1]).astype(np.float32)
    integers = np.clip(np.round(weight / held), -127, 127).astype(np.int8)
    graph.initializer.append(numpy_helper.from_array(integers, inputs[0]))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), inputs[2]))
    return helper.make_node("DequantizeLinear", inputs, [f"{name}/dq"], name=f"{name}/DQ", axis=1)


def _constant(graph: onnx.GraphProto, name: str, values: np.ndarray, real: int) -> str:
    dtype = helper.tensor_dtype_to_np_dtype(real)
    # a scale below the type's smallest normal number would divide by nearly nothing
    smallest = 6.2e-5 if real == TensorProto.FLOAT16 else 1e-30
    graph.initializer.append(numpy_helper.from_array(np.maximum(values, smallest).astype(dtype), name))
    return name


@dataclass(frozen=True)
class Options:
    """Quantise an exported graph to int8 with calibration images."""

    source: Annotated[Path, tyro.conf.Positional]
    """The exported .onnx: fp32 for --target cpu, fp16 or bf16 for --target tensorrt."""
    out: Path
    """The int8 .onnx to write; its manifest goes beside it."""
    dataset: str
    """Dataset of the calibration images: shapes, folder, camvid, ade20k."""
    data: Path | None = None
    """Root folder of the dataset."""
    split: str = "train"
    """Split the calibration images come from."""
    images: int = 32
    """Number of calibration images, spread evenly over the split."""
    target: Target = "cpu"
    """cpu: ONNX Runtime and OpenVINO. tensorrt: TensorRT and TensorRT-RTX."""
    method: Method = "minmax"
    """How ranges are found: everything seen, or both tails clipped."""
    percentile: float = 99.99
    """Where the percentile method clips."""
    smoothing: float = SMOOTHING
    """How much of the outlier channels' range moves into the weights, 0 to 1."""
    exclude: tuple[str, ...] = ()
    """Linear layers whose weight's name has one of these parts stay in floating point: fc2, decoder, blocks.0."""
    threads: int | None = None
    """CPU threads of the calibration; all cores when left out."""


def calibration_images(dataset: SegmentationDataset, count: int, size: tuple[int, int]) -> Iterable[np.ndarray]:
    """`count` images spread evenly over a dataset, uint8 [H, W, 3], resized to `size` where they differ."""
    if count < 1:
        raise EngineError(f"{count} calibration images: wanted at least 1, typically 16 to 64")
    samples = Subset(dataset, count)
    return (fit(samples[index].image, size) for index in range(len(samples)))


def quantize_graph(options: Options) -> int:
    base = read_manifest(options.source)
    samples = open_dataset(options.dataset, options.data, options.split)
    images = calibration_images(samples, options.images, base.size)
    manifest = quantize(
        options.source,
        options.out,
        images,
        target=options.target,
        method=options.method,
        percentile=options.percentile,
        smoothing=options.smoothing,
        exclude=options.exclude,
        threads=options.threads,
    )
    print(
        f"{options.out}: {manifest.details['layers']} linear layers in int8, {options.out.stat().st_size / 1e6:.1f} MB"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(quantize_graph, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
