"""The operators: equal to `segmenter.ops` on a CPU, clean by PyTorch's own checks, whole in a compiled network."""

from typing import Any

import pytest
import torch
from torch import Tensor

import segmenter_kernels
from segmenter import ops
from segmenter.model import Segmenter
from segmenter_kernels import library, reference
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import DTYPES, inputs, judge, judge_gradients
from tests.networks import small_network

# tensors, then what follows them
ANGLES = torch.arange(5 * 16.0, device=DEVICE).reshape(5, 16)
CALLS: dict[str, tuple[list[tuple[int, ...]], tuple[Any, ...]]] = {
    "rotate": ([(2, 5, 192)], (ANGLES.cos(), ANGLES.sin(), 2)),
    "attention": ([(2, 5, 192)], (2,)),
    "patch_embed": ([(2, 3, 16, 24), (16, 3, 8, 8), (16,), (1, 8, 16), (1, 2, 16)], ()),
    "layernorm": ([(2, 5, 16), (16,), (16,)], (1e-5,)),
    "add_layernorm": ([(2, 5, 16), (2, 5, 16), (16,), (16,)], (1e-5,)),
    "linear_gelu": ([(2, 5, 16), (32, 16), (32,)], ()),
    "linear_residual": ([(2, 5, 16), (32, 16), (32,), (2, 5, 32)], ()),
    "mask_scores": ([(2, 9, 16), (2, 3, 16), (3,), (3,)], (1e-5,)),
    "upsample_argmax": ([(2, 3, 4, 5)], ((16, 20), (15, 17))),
}
DIFFERENTIABLE = ("rotate", "attention", "layernorm", "add_layernorm", "linear_gelu", "linear_residual")


def call(name: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], tuple[Any, ...]]:
    shapes, rest = CALLS[name]
    return inputs(*shapes, dtype=dtype), rest


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ops.NAMES)
def test_the_reference_is_segmenter_ops_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    tensors, rest = call(name, dtype)
    ours, theirs = getattr(reference, name)(*tensors, *rest), getattr(ops, name)(*tensors, *rest)
    for one, other in zip(outputs(ours), outputs(theirs), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_many_classes_are_labelled_in_16_bits() -> None:
    (masks,) = inputs((1, 300, 2, 3), dtype=torch.float32)
    labels = library.upsample_argmax(masks, (4, 6))
    assert labels.dtype == torch.int16
    assert torch.equal(labels, ops.upsample_argmax(masks, (4, 6)))


def test_labels_may_be_asked_for_by_how_many_times_the_grid() -> None:
    (masks,) = inputs((1, 5, 2, 3), dtype=torch.float32)
    assert torch.equal(library.upsample_argmax(masks, (-4, -3)), ops.upsample_argmax(masks, (8, 9)))
    assert torch.equal(library.upsample_argmax(masks, (-4, 7), (5, 7)), ops.upsample_argmax(masks, (8, 7), (5, 7)))
    with torch._subclasses.FakeTensorMode() as mode:
        assert library.upsample_argmax(mode.from_tensor(masks), (-4, 7)).shape == (1, 8, 7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in ops.NAMES if name != "upsample_argmax"])
def test_operators_agree_with_float64(name: str, dtype: torch.dtype) -> None:
    tensors, rest = call(name, dtype)
    judge(getattr(library, name), getattr(ops, name), tensors, *rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_agree_with_float64(name: str, dtype: torch.dtype) -> None:
    tensors, rest = call(name, dtype)
    judge_gradients(getattr(library, name), getattr(ops, name), tensors, *rest)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", ops.NAMES)
def test_pytorch_finds_nothing_wrong(name: str, gradient: bool) -> None:
    tensors, rest = call(name, torch.float32 if DEVICE == "cpu" else torch.float16)
    if gradient and name not in DIFFERENTIABLE:
        with pytest.raises(ValueError, match=f"{name}: .* needs a gradient and this kernel has none"):
            getattr(library, name)(*(x.requires_grad_() for x in tensors), *rest)
        return
    tensors = [x.requires_grad_(gradient) for x in tensors]
    padding = (None,) if name == "upsample_argmax" and len(rest) == 1 else ()
    torch.library.opcheck(getattr(torch.ops.segmenter, name).default, (*tensors, *rest, *padding))


def test_pytorch_finds_nothing_wrong_with_the_gradient_of_attention() -> None:
    tensors = inputs((2, 5, 64), (2, 5, 192), dtype=torch.float32 if DEVICE == "cpu" else torch.float16)
    torch.library.opcheck(torch.ops.segmenter.attention_backward.default, (*tensors, 2))


@pytest.mark.parametrize("name", [*ops.NAMES, "attention_backward"])
def test_launchers_take_what_operators_pass_on(name: str) -> None:
    """On a GPU an operator is its launcher; elsewhere that is seen here alone."""
    if name == "attention_backward":
        tensors, rest = inputs((2, 5, 64), (2, 5, 192), dtype=torch.float32), (2,)
    else:
        tensors, rest = call(name)
    found = outputs(getattr(segmenter_kernels, name)(*tensors, *rest))
    wanted = outputs(getattr(reference, name)(*tensors, *rest))
    for one, other in zip(found, wanted, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other)


def test_dropout_is_refused() -> None:
    (qkv,), rest = call("attention")
    with pytest.raises(ValueError, match=r"attention: dropout 0.1: kernels have none; use segmenter.ops"):
        library.attention(qkv, *rest, dropout=0.1)


@pytest.fixture(scope="module")
def networks() -> tuple[Segmenter, Segmenter]:
    """One network on `segmenter.ops` and on the operators."""
    eager = small_network(distilled=True, layer_scale=True).to(DEVICE)
    mine = Segmenter(eager.config, library).to(DEVICE).eval()
    mine.load_state_dict(eager.state_dict())
    return eager, mine


def operators_of(graph: torch.fx.Graph) -> list[str]:
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return sorted(target.removeprefix("segmenter.") for target in targets if target.startswith("segmenter."))


BLOCK = ("layernorm", "add_layernorm", "attention", "linear_gelu", "linear_residual")
WHOLE = sorted(
    f"{name}.default" for name in [*BLOCK * 3, *["layernorm"] * 2, "mask_scores", "patch_embed", "upsample_argmax"]
)


def test_export_keeps_the_operators_of_a_network_whole(networks: tuple[Segmenter, Segmenter]) -> None:
    class Labels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = networks[1]

        def forward(self, images: Tensor) -> Tensor:
            return self.network.labels(images)

    images = inputs((2, 3, 60, 64), dtype=torch.float32, mean=0.0)[0]
    with torch.no_grad():
        batch = torch.export.Dim("B", min=1, max=8)
        program = torch.export.export(Labels(), (images,), dynamic_shapes={"images": {0: batch}})
        program = program.run_decompositions()
        assert operators_of(program.graph) == WHOLE
        labels = program.module()(images[:1].contiguous())
        assert torch.equal(labels, networks[1].labels(images[:1]))
        assert labels.shape == (1, 60, 64)


def test_a_network_with_rotary_positions_is_exported_and_compiled_whole() -> None:
    eager = small_network("linear", positions="rotary", registers=2).to(DEVICE)
    mine = Segmenter(eager.config, library).to(DEVICE).eval()
    mine.load_state_dict(eager.state_dict())
    images = inputs((2, 3, 32, 64), dtype=torch.float32, mean=0.0)[0]
    with torch.no_grad():
        program = torch.export.export(mine, (images,)).run_decompositions()
        wanted = [*["rotate", *BLOCK] * 2, "layernorm", "patch_embed"]
        assert operators_of(program.graph) == sorted(f"{name}.default" for name in wanted)
        torch._dynamo.reset()
        compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")(images)
        torch.testing.assert_close(compiled, eager(images))


def test_a_compiled_network_has_one_graph_and_the_same_labels(networks: tuple[Segmenter, Segmenter]) -> None:
    eager, mine = networks
    images = inputs((2, 3, 60, 64), dtype=torch.float32, mean=0.0)[0]
    torch._dynamo.reset()
    with torch.no_grad():
        labels = torch.compile(mine.labels, fullgraph=True, backend="aot_eager")(images)
        assert len(labels.unique()) > 1
        assert (labels == eager.labels(images)).double().mean() >= 0.999


def test_a_compiled_block_has_gradients(networks: tuple[Segmenter, Segmenter]) -> None:
    eager, mine = (network.encoder.blocks[0] for network in networks)
    (x,) = inputs((2, 7, 64), dtype=torch.float32)
    torch._dynamo.reset()
    found = torch.compile(mine, fullgraph=True, backend="aot_eager")(x)
    wanted = eager(x)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), list(mine.parameters())),
        torch.autograd.grad(wanted.square().sum(), list(eager.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
