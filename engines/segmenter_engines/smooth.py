"""Outlier channels moved from activations into weights, exactly, where a LayerNorm feeds linear layers.

A symmetric int8 activation has one scale a tensor; a few channels a hundred times the rest leave those a handful of
levels. Dividing such a channel in the LayerNorm and multiplying the weights that read it changes nothing in floating
point.
Source: SmoothQuant (Xiao et al., ICML 2023), equation 4.
"""

from collections.abc import Sequence

import numpy as np
import onnx
import torch

from segmenter_engines.formats import tensor_of, values_of
from segmenter_engines.wiring import Wiring, constants_of, drop_unused

MOST = 100.0  # times a channel is scaled at most, either way: 16-bit LayerNorm weights must hold the result


def norm_fed(graph: onnx.GraphProto, weights: Sequence[str]) -> dict[str, tuple[onnx.NodeProto, list[str]]]:
    """LayerNorm outputs read by linear layers alone: name -> (LayerNorm, weights [I, O] of the readers).

    weights: names of the linear layers' weights; an output or a weight that anything else reads is left out.
    """
    known = set(weights)
    readers = Wiring(graph).readers
    found = {}
    for norm in graph.node:
        if norm.op_type != "LayerNormalization" or len(norm.input) != 3:
            continue
        reading = readers.get(norm.output[0], [])
        linear = all(node.op_type == "MatMul" and node.input[1] in known for node in reading)
        if reading and linear and all(len(readers[node.input[1]]) == 1 for node in reading):
            found[norm.output[0]] = norm, [node.input[1] for node in reading]
    return found


def smooth(
    graph: onnx.GraphProto,
    fed: dict[str, tuple[onnx.NodeProto, list[str]]],
    peaks: dict[str, np.ndarray],
    alpha: float,
) -> None:
    """Rewrite LayerNorms and the weights behind them in place.

    fed: as `norm_fed` finds them; peaks: largest magnitude of each channel of each output, [I]; alpha: share of the
    difficulty moved to the weights, 0 to 1.
    """
    constants = constants_of(graph)
    for name, (norm, weights) in fed.items():
        matrices = [_values(constants[weight]) for weight in weights]
        rows = np.stack([np.abs(matrix).max(axis=1) for matrix in matrices]).max(axis=0)
        scale = np.maximum(peaks[name], 1e-5) ** alpha / np.maximum(rows, 1e-5) ** (1.0 - alpha)
        scale = np.clip(scale / np.exp(np.log(scale).mean()), 1.0 / MOST, MOST)
        for index, kind in ((1, "weight"), (2, "bias")):
            # exporters store equal tensors once, such as the weights of norms that never learnt: take a copy
            own = graph.initializer.add()
            own.CopyFrom(constants[norm.input[index]])
            own.name = norm.input[index] = f"{name}/smooth/{kind}"
            _replace(own, _values(own) / scale)
        for weight, matrix in zip(weights, matrices, strict=True):
            _replace(constants[weight], matrix * scale[:, None])
    drop_unused(graph)


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    return values_of(tensor).numpy()


def _replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(tensor_of(tensor.name, torch.from_numpy(values), tensor.data_type))
