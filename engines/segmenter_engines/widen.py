"""A 16-bit graph computed in float32: the same weights, the same Q/DQ nodes, wider sums.

ONNX Runtime has no bf16 kernels on a CPU and runs fp16 ones through casts; what a calibration or a sensitivity asks of
a graph does not hang on the rounding of its activations to 16 bits.
"""

import onnx
from onnx import TensorProto

from segmenter_engines.formats import tensor_of, values_of

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


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
