"""Weights of linear layers under their parameters' names.

PyTorch's exporter transposes them while it folds constants and calls the results val_14, val_72: nobody could tell a
layer by name, to keep it in floating point for example.
"""

import onnx
import torch
from onnx import numpy_helper
from torch import nn


def name_weights(graph: onnx.GraphProto, module: nn.Module) -> None:
    """Rename in place each constant that is the transpose of a parameter of `module` after that parameter.

    Told by their values, bit for bit: a neighbour's name would do only where a layer has a bias that is not zero.
    Equal parameters are stored once, under the first one's name.
    """
    names: dict[tuple[tuple[int, ...], bytes], str] = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            turned = parameter.detach().t().contiguous()
            names.setdefault((tuple(turned.shape), turned.view(torch.uint8).numpy().tobytes()), name)
    taken = {tensor.name for tensor in graph.initializer}
    renamed = {}
    for tensor in graph.initializer:
        if len(tensor.dims) == 2:
            found = names.get((tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()))
            if found is not None and found not in taken:
                renamed[tensor.name] = found
                taken.add(found)
                tensor.name = found
    for node in graph.node:
        for index, used in enumerate(node.input):
            if used in renamed:
                node.input[index] = renamed[used]
