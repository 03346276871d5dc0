"""How the nodes of a graph hang together, by the names of their tensors."""

import onnx


class Wiring:
    """A graph's constants, who makes each tensor and who reads it, as it all was when this was made."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = constants_of(graph)
        self.made_by = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The constants of a graph by their names."""
    return {tensor.name: tensor for tensor in graph.initializer}


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the constants that no node reads and that are no outputs."""
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
