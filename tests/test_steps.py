"""Steps that follow from ranges, and those of one graph written into another."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from segmenter_engines.formats import FP8, INT8, TORCH, UINT8, tensor_of, weight_format
from segmenter_engines.qdq import insert_qdq, linears, quantised_layers
from segmenter_engines.steps import ONE_SIDED, Range, Steps, steps_over

REALS = pytest.mark.parametrize(
    "real", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["fp32", "fp16", "bf16"]
)


def written(steps: Steps, real: int) -> Steps:
    """What a graph of one layer holds whose activation has these steps."""
    weight = tensor_of("model.a.weight", torch.eye(4), real)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "model.a.weight"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, real, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    insert_qdq(graph, linears(graph), {"a": steps}, weight_format("int8"))
    return quantised_layers(graph)["model.a.weight"].steps


@REALS
@pytest.mark.parametrize("form", [INT8, UINT8, FP8], ids=["int8", "uint8", "fp8"])
def test_a_graph_holds_the_steps_as_they_are(form, real):
    random = np.random.default_rng(0)
    spans = [Range(-0.1134, 0.45642), Range(0.0, 1.0), Range(0.0, 0.0), Range(-1e-7, 3e-7)]
    for high in 10.0 ** random.uniform(-2.0, 1.5, 300):
        spans.append(Range(-high * ONE_SIDED * random.uniform(0.97, 1.03), high))
        spans.append(Range(-high * random.uniform(0.0, 3.0), high))
    for span in spans:
        steps = steps_over(span, form, real)
        assert written(steps, real) == steps


@REALS
def test_steps_reach_both_ends_of_a_range(real):
    for low, high in ((-0.17, 5.0), (0.0, 3.0), (-0.249, 1.0), (-0.251, 1.0), (-4.0, 1.0)):
        for form in (INT8, UINT8):
            steps = steps_over(Range(low, high), form, real)
            ends = torch.tensor([low, 0.0, high])
            # half a step is rounding; scale and shift are rounded too, each to half an eps of up to 255 steps
            slack = 0.5 + 256 * torch.finfo(TORCH[real]).eps
            assert (steps.fake(ends) - ends).abs().max() <= slack * steps.scale
            # a shift of 8 bits would put zero between two steps
            assert bool(steps.shift) == (form is INT8 and real != TensorProto.BFLOAT16 and -low < ONE_SIDED * high)
