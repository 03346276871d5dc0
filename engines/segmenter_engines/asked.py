"""What a graph asks of a builder: attentions, plugins, and linear layers, each with the precision its tensors say.

The layer report is held against this: what was asked for and what runs are two things.
"""

from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from segmenter_engines.qdq import layer_name

TYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}


@dataclass(frozen=True)
class AskedLinear:
    """A product with constant weights."""

    node: str  # name of the MatMul or Gemm
    name: str  # of the parameter: encoder.blocks.0.attn.qkv
    precision: str  # int8 or fp8 when weight and activation are dequantised in front of it, else the weight's type


@dataclass(frozen=True)
class Asked:
    """Attentions, linear layers and plugins of a graph."""

    attentions: int  # a softmax between two products, or one node
    linears: tuple[AskedLinear, ...]
    plugins: dict[str, str]  # op of each node that is none of ONNX's, by the node's name where it has one


def asked(graph: onnx.GraphProto) -> Asked:
    """Read a graph; its tensors' values are not looked at."""
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    readers = {name: node.op_type for node in graph.node for name in node.input}
    linears = [
        AskedLinear(node.name, layer_name(weight.partition("/")[0]), precision)
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        for weight, precision in [_weight(node, constants, made_by)]
        if weight
    ]
    custom = [node for node in graph.node if node.domain not in ("", "ai.onnx")]
    # of the nodes: their names may be missing, or the same
    attentions = sum(node.op_type == "SegmenterAttention" for node in custom) + sum(
        (node.op_type == "Attention" and not node.domain)
        or (node.op_type == "Softmax" and readers.get(node.output[0]) == "MatMul")
        for node in graph.node
    )
    return Asked(attentions, tuple(linears), {node.name: node.op_type for node in custom if node.name})


def _weight(node: NodeProto, constants: dict[str, int], made_by: dict[str, NodeProto]) -> tuple[str, str]:
    """Name and precision of a product's constant right side; ("", "") when it has none."""
    name = node.input[1]
    if name in constants:
        return name, TYPES.get(constants[name], "other")
    source = made_by.get(name)
    if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in constants:
        return "", ""
    left = made_by.get(node.input[0])
    if left is not None and left.op_type == "DequantizeLinear":
        return name, TYPES.get(constants[source.input[0]], "other")
    return name, TYPES.get(constants[source.input[1]], "other")  # weights alone are held in 8 bits
