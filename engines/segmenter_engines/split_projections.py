"""A quantised product whose result is split at once, as q, k and v are, becomes one product a part.

TensorRT pulls such a split through the product. With the weights in 8 bits that leaves slices of dequantised weights,
which are no constants any more, and a product in 16 bits (RTX 1.7.1: 14 of 57 linear layers of an int8 Seg-Ti, each
dequantised anew for every image). Given the parts it merges them into one product again, in 8 bits. The arithmetic is
the same: every output column has its own weights, scale and bias.
"""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper


def split_projections(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place; returns how many products were split. Parts are named `<node>/0`, `<node>/1`, ..."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    replaced: dict[str, list[NodeProto]] = {}  # by the first output of the Split
    dropped: set[str] = set()  # first outputs of the nodes the parts stand for
    for split in graph.node:
        chain = _chain(split, constants, made_by, readers)
        if chain is not None:
            replaced[split.output[0]] = _parts(graph, split, *chain, constants)
            dropped |= {node.output[0] for node in chain}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.output and node.output[0] in dropped:
            continue
        graph.node.extend(replaced.get(node.output[0], [node]) if node.output else [node])
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return len(replaced)


def _chain(
    split: NodeProto, constants: dict[str, TensorProto], made_by: dict[str, NodeProto], readers: dict[str, int]
) -> tuple[NodeProto, NodeProto, NodeProto] | None:
    """DequantizeLinear, MatMul and Add before a Split into equal parts of the last axis, when they serve it alone."""
    if split.op_type != "Split" or len(split.output) < 2:
        return None
    add = made_by.get(split.input[0])
    if add is None or add.op_type != "Add" or add.input[1] not in constants or readers[add.output[0]] != 1:
        return None
    product = made_by.get(add.input[0])
    if product is None or product.op_type != "MatMul" or readers[product.output[0]] != 1:
        return None
    weight = made_by.get(product.input[1])
    if weight is None or weight.op_type != "DequantizeLinear" or readers[weight.output[0]] != 1:
        return None
    if any(name not in constants for name in weight.input):
        return None
    columns = constants[weight.input[0]].dims
    sizes = numpy_helper.to_array(constants[split.input[1]]).tolist() if len(split.input) > 1 else None
    even = len(columns) == 2 and columns[1] % len(split.output) == 0 and (sizes is None or len(set(sizes)) == 1)
    axis = next((attribute.i for attribute in split.attribute if attribute.name == "axis"), 0)
    # the product is [B, N, I] by [I, O]: its last axis is 2, or -1
    return (weight, product, add) if even and axis in (2, -1) else None


def _parts(
    graph: onnx.GraphProto,
    split: NodeProto,
    weight: NodeProto,
    product: NodeProto,
    add: NodeProto,
    constants: dict[str, TensorProto],
) -> list[NodeProto]:
    made: list[NodeProto] = []
    axis = next((attribute.i for attribute in weight.attribute if attribute.name == "axis"), 1)
    for index, output in enumerate(split.output):
        names = [_slice(graph, constants[name], index, len(split.output)) for name in (*weight.input, add.input[1])]
        dequantised, summed = f"{weight.output[0]}/{index}", f"{product.output[0]}/{index}"
        made += [
            helper.make_node("DequantizeLinear", names[:-1], [dequantised], name=f"{weight.name}/{index}", axis=axis),
            helper.make_node("MatMul", [product.input[0], dequantised], [summed], name=f"{product.name}/{index}"),
            helper.make_node("Add", [summed, names[-1]], [output], name=f"{add.name}/{index}"),
        ]
    return made


def _slice(graph: onnx.GraphProto, tensor: TensorProto, index: int, count: int) -> str:
    """Add one of `count` equal parts of a constant's last axis; returns its name. One number serves all parts."""
    if not tensor.dims or tensor.dims[-1] == 1:
        return tensor.name
    name = f"{tensor.name}/{index}"
    part = np.ascontiguousarray(np.split(numpy_helper.to_array(tensor), count, axis=-1)[index])
    if not any(known.name == name for known in graph.initializer):
        graph.initializer.append(helper.make_tensor(name, tensor.data_type, part.shape, part.tobytes(), raw=True))
    return name
