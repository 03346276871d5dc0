"""A graph cut down to some of its outputs."""

from collections.abc import Collection

import onnx

from segmenter_engines.wiring import drop_unused


def cut(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Leave in a graph, in place, what these of its outputs need.

    ONNX Runtime computes every node of a graph, whether or not an output needs it: labels' upsampling, for example.
    """
    for output in [output for output in graph.output if output.name not in outputs]:
        graph.output.remove(output)
    needed = set(outputs)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    drop_unused(graph)
