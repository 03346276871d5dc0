"""A 16-bit graph computed in float32: the same weights, the same Q/DQ nodes, wider sums.

ONNX Runtime has no bf16 kernels on a CPU and runs fp16 ones through casts. What a calibration or a sensitivity asks of
a graph does not hang on the rounding of its activations to 16 bits; what a verification asks does.
"""

import onnx
from onnx import TensorProto, helper

from segmenter_engines.formats import tensor_of, values_of

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# what only moves numbers, as far as it is worth the time, and what `rounded` leaves as it is
_EXACT = ("Concat", "Expand", "Reshape", "Slice", "Split", "Transpose", "DequantizeLinear")


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph with float32 wherever it had fp16 or bf16; weights keep their rounded values.

    A node that casts to 16 bits casts to float32. Raises nothing for a float32 graph, which is copied as it is.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
                attribute.i = TensorProto.FLOAT
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _NARROW:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return wide


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _NARROW:
        tensor.CopyFrom(tensor_of(tensor.name, values_of(tensor), TensorProto.FLOAT))


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that any CPU computes as 16 bits would: in float32, every result rounded to the type it had.

    ONNX Runtime by itself leaves float32 between nodes it has no 16-bit kernels for, where what overflows goes unseen.
    What comes out of 8 bits is not rounded, as engines scale the sums of its products and not each number.
    """
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    wide = widened(model)
    nodes = list(wide.graph.node)
    del wide.graph.node[:]
    for node in nodes:
        casts = []
        for index, name in enumerate(node.output):
            if node.op_type not in _EXACT and types.get(name) in _NARROW:
                node.output[index] = f"{name}/wide"
                casts.append(helper.make_node("Cast", [f"{name}/wide"], [f"{name}/narrow"], to=types[name]))
                casts.append(helper.make_node("Cast", [f"{name}/narrow"], [name], to=TensorProto.FLOAT))
        wide.graph.node.extend([node, *casts])
    return wide
