"""What Triton's interpreter cannot show: kernels inside CUDA graphs, on other streams, and past 2^31 elements."""

import pytest
import torch
from torch import Tensor

from segmenter_kernels import tiles, workloads
from segmenter_kernels.checks import INTERPRETED
from segmenter_kernels.judging import judge
from tests.kernels.conftest import DEVICE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device: the interpreter has no graphs, and no time for this"),
]
AT = torch.device(DEVICE)
GIB = 2**30
MOST_BYTES = 40 * GIB  # of the largest of these, with what PyTorch draws it from
LARGE = (
    workloads.norm("add_layernorm", 2800, 1025, 768, torch.float16),
    workloads.attention(2800, 4097, 1, 64, torch.float16),
    workloads.patch_embed(2800, 512, 768, torch.float16),
    workloads.mask_scores(14000, 1024, 64, torch.float16),
    workloads.upsample_argmax(8300, 512, torch.float16),
    workloads.quantize(2800, 1025, 768, torch.float16),
    workloads.linear("linear_residual", 2800, 1025, 192, torch.float16),
)


def outputs(result: object) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [x for x in result if isinstance(x, Tensor)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("op", workloads.OPS)
def test_a_graph_on_another_stream_gives_the_bits_of_a_launch(op: str) -> None:
    if not workloads.runs_on(op, tiles.architecture_of(AT)):
        pytest.skip("this GPU lacks what the op needs")
    workload = workloads.of_op(op, torch.float16, (2,), ("Ti",))[0]
    arguments = workload.arguments(AT)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.inference_mode():
        launched = outputs(workload.launch(*arguments))
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.graph(graph, stream=stream):
            captured = outputs(workload.launch(*arguments))
        for x in captured:
            x.zero_()
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(launched, captured, strict=True):
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_offsets_past_2_to_the_31_are_right() -> None:
    """One test, so that many processes never hold several of these at once."""
    if torch.cuda.mem_get_info()[0] < MOST_BYTES:
        pytest.skip(f"needs {MOST_BYTES // GIB} GiB of free GPU memory")
    for one in LARGE:
        arguments = one.arguments(AT)
        with torch.inference_mode():
            answer = one.launch(*arguments)
            for image in (0, one.batch - 1):
                verdict = judge(one, answer, arguments, image=image)
                assert verdict.right, f"{one.op} {one.shape}, image {image}: {verdict}"
        del arguments, answer
        torch.cuda.empty_cache()
