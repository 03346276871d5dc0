"""Queries, keys and values parted by heads, so that their projection stays one product in 8 bits.

Exported, the projection's output [B, N, 3C] is split along its channels and each part reshaped to heads. TensorRT-RTX
carries that split into the weights, which it then dequantises and multiplies in 16 bits: a quarter of the linear
layers' work, unseen, because the input of the product stays in 8 bits. Reshaped first, to [B, N, 3A, D], and split
along the heads, the parts are the same and the weights stay whole.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segmenter_engines.wiring import Wiring


def split_by_heads(graph: onnx.GraphProto) -> int:
    """Rewrite each such split in place; returns how many there were. Values do not change."""
    wiring = Wiring(graph)
    made_by, constants, readers = wiring.made_by, wiring.constants, wiring.readers

    def width_of(name: str) -> int:
        """Channels of what a linear layer gives, with its bias or without; 0 for anything else."""
        node = made_by.get(name)
        while node is not None and node.op_type == "Add":
            node = next((made_by[one] for one in node.input if one in made_by), None)
        linear = node is not None and node.op_type == "MatMul" and node.input[1] in constants
        return int(constants[node.input[1]].dims[-1]) if linear and node is not None else 0

    def heads_of(split: onnx.NodeProto) -> tuple[int, int] | None:
        """(A, D) when each output of a split is read by a reshape to [B, N, A, D] alone, else None."""
        parts = [readers.get(name, []) for name in split.output]
        if any(len(part) != 1 or part[0].op_type != "Reshape" for part in parts):
            return None
        shapes = {_last_two(part[0].input[1], wiring) for part in parts}
        heads = shapes.pop() if len(shapes) == 1 else None
        # with one head the exporter reshapes to [B, 1, N, D] and needs no transpose: another pattern, left alone
        return heads if heads is not None and 3 * heads[0] * heads[1] == width_of(split.input[0]) else None

    nodes: list[onnx.NodeProto] = []
    parted: set[str] = set()
    found = 0
    for node in graph.node:
        heads = heads_of(node) if node.op_type == "Split" and len(node.output) == 3 else None
        if heads is not None:
            whole = f"{node.input[0]}/heads"
            shape = numpy_helper.from_array(np.array([0, 0, 3 * heads[0], heads[1]], np.int64), f"{whole}/shape")
            graph.initializer.append(shape)
            outputs = [readers[name][0].output[0] for name in node.output]
            nodes += [
                helper.make_node("Reshape", [node.input[0], shape.name], [whole], name=f"{whole}/Reshape"),
                helper.make_node("Split", [whole], outputs, name=f"{whole}/Split", axis=2, num_outputs=3),
            ]
            parted.update(outputs)
            found += 1
        elif node.output[0] not in parted:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return found


def _last_two(name: str, wiring: Wiring) -> tuple[int, int] | None:
    """The last two of the four numbers of a reshape's target, where both are known; a dynamic size computes others."""
    constants = wiring.constants
    if name in constants:
        shape = numpy_helper.to_array(constants[name])
        return (int(shape[2]), int(shape[3])) if shape.size == 4 and min(shape[2:]) > 0 else None
    node = wiring.made_by.get(name)
    if node is None or node.op_type != "Concat" or len(node.input) != 4:
        return None
    pair = [constants[one] for one in node.input[2:] if one in constants]
    values = [int(numpy_helper.to_array(tensor).item()) for tensor in pair if numpy_helper.to_array(tensor).size == 1]
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None
