"""Q/DQ nodes in a graph: which layers get them, how they are written, and how they are read back.

Our own writer rather than nvidia-modelopt: measured on Seg-Ti, both give TensorRT-RTX the same 14 fused attention
kernels and 57 8-bit products once the base is 16-bit, while this one also serves ONNX Runtime and OpenVINO with the
zero points they gain from, names layers by their parameters, leaves the tail alone without lists of node names, and
needs none of the gigabytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from onnx import NodeProto, helper

from segmenter.errors import EngineError
from segmenter_engines.formats import FORMATS, Format, held_scale, tensor_of, values_of
from segmenter_engines.steps import Steps
from segmenter_engines.wiring import Wiring, constants_of, drop_unused

# class projections, of the mask decoder and of the linear one: kept in floating point
TAIL = ("decoder.proj_patch", "decoder.proj_classes", "decoder.head")


@dataclass(frozen=True)
class Linear:
    """A MatMul with a constant right side [I, O]."""

    node: NodeProto
    activation: str
    weight: str


def linears(graph: onnx.GraphProto, exclude: Sequence[str] = ()) -> list[Linear]:
    """The linear layers worth 8 bits, in graph order, without those whose weight's name holds a word of `exclude`.

    Words are whole parts of a name: blocks.1 is in encoder.blocks.1.mlp.fc1.weight, not in encoder.blocks.10.
    """
    constants = constants_of(graph)
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


def layer_name(weight: str) -> str:
    """A layer by its place in the network: encoder.blocks.0.mlp.fc1."""
    return weight.removeprefix("model.").removesuffix(".weight")


def insert_qdq(graph: onnx.GraphProto, chosen: Sequence[Linear], steps: Mapping[str, Steps], weights: Format) -> None:
    """Rewrite `graph` in place: Q/DQ in front of each chosen layer, its weight in 8 bits behind a DequantizeLinear.

    steps: of each chosen layer's activation, by the tensor's name; weights: the format of its weight.
    """
    constants = constants_of(graph)
    real = constants[chosen[0].weight].data_type
    before: list[NodeProto] = []
    after: dict[str, list[NodeProto]] = {}
    quantised: dict[str, str] = {}
    for layer in chosen:
        if layer.activation not in quantised:
            nodes = _activation(graph, layer.activation, steps[layer.activation], real)
            after[layer.activation] = nodes
            quantised[layer.activation] = nodes[-1].output[0]
        if layer.weight not in quantised:
            node = _weight(graph, constants[layer.weight], weights, real)
            before.append(node)
            quantised[layer.weight] = node.output[0]
        if shift := steps[layer.activation].shift:
            output = layer.node.output[0]
            layer.node.output[0] = f"{output}/centred"
            weight = values_of(constants[layer.weight])
            back = shift * weights.fake(weight, weight_scale(weight, weights, real, axis=0)).sum(0)
            graph.initializer.append(tensor_of(f"{output}/shift", back, real))
            node = helper.make_node("Add", [f"{output}/centred", f"{output}/shift"], [output], name=f"{output}/Add")
            after[f"{output}/centred"] = [node]
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
    drop_unused(graph)


def _activation(graph: onnx.GraphProto, name: str, steps: Steps, real: int) -> list[NodeProto]:
    nodes, whole = [], name
    if steps.shift:
        name = f"{whole}/centred"
        graph.initializer.append(tensor_of(f"{whole}/middle", torch.tensor(steps.shift), real))
        nodes = [helper.make_node("Sub", [whole, f"{whole}/middle"], [name], name=f"{whole}/Sub")]
    inputs = [f"{name}/scale", f"{name}/zero"]
    graph.initializer.append(tensor_of(inputs[0], held_scale(torch.tensor(steps.scale), real), real))
    graph.initializer.append(tensor_of(inputs[1], torch.tensor(steps.zero), steps.form.element))
    return [
        *nodes,
        helper.make_node("QuantizeLinear", [name, *inputs], [f"{name}/q"], name=f"{name}/Q"),
        helper.make_node("DequantizeLinear", [f"{name}/q", *inputs], [f"{name}/dq"], name=f"{name}/DQ"),
    ]


def weight_scale(weight: torch.Tensor, form: Format, real: int, axis: int) -> torch.Tensor:
    """A scale for each output channel as the graph holds it, float32; `axis` is that of the inputs, which it spans."""
    largest = weight.abs().amax(dim=axis, keepdim=True).clamp(min=1e-8)
    # numbers are rounded against the scale as the graph will hold it, not as it was before rounding to 16 bits
    return held_scale(largest / form.high, real)


def _weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, form: Format, real: int) -> NodeProto:
    name = tensor.name
    weight = values_of(tensor)  # [I, O]
    scale = weight_scale(weight, form, real, axis=0)
    inputs = [f"{name}/q", f"{name}/scale", f"{name}/zero"]
    graph.initializer.append(tensor_of(inputs[0], form.encode(weight, scale), form.element))
    graph.initializer.append(tensor_of(inputs[1], scale[0], real))
    graph.initializer.append(tensor_of(inputs[2], torch.zeros(scale.shape[1]), form.element))
    return helper.make_node("DequantizeLinear", inputs, [f"{name}/dq"], name=f"{name}/DQ", axis=1)


@dataclass(frozen=True)
class Quantised:
    """A layer as a Q/DQ graph holds it: its activation's name and steps."""

    activation: str
    steps: Steps


def quantised_layers(graph: onnx.GraphProto) -> dict[str, Quantised]:
    """The layers of a Q/DQ graph by their weight's name, as `insert_qdq` wrote them."""
    wiring = Wiring(graph)
    made_by, constants = wiring.made_by, wiring.constants
    found = {}
    for node in graph.node:
        sides = [made_by[name] for name in node.input if name in made_by] if node.op_type == "MatMul" else []
        if [side.op_type for side in sides] == ["DequantizeLinear"] * 2:
            left, right = sides
            scale, zero = constants[left.input[1]], constants[left.input[2]]
            activation, weight = made_by[left.input[0]].input[0], right.output[0].removesuffix("/dq")
            shift, before = 0.0, made_by.get(activation)
            if before is not None and before.op_type == "Sub" and activation.endswith("/centred"):
                activation, shift = before.input[0], float(values_of(constants[before.input[1]]))
            steps = Steps(FORMATS[zero.data_type], float(values_of(scale)), int(values_of(zero)), shift)
            found[weight] = Quantised(activation, steps)
    return found


def activations_of(layers: Iterable[Linear]) -> list[str]:
    """Names of what the layers read, each once."""
    return list(dict.fromkeys(layer.activation for layer in layers))
