import pytest
import torch

import segmenter_kernels
from segmenter import ops
from segmenter_kernels import tiles
from tests.kernels.harness import DTYPES, inputs, judge, judge_gradients

SHAPES = [(1, 1, 192), (2, 97, 384), (3, 197, 200), (1, 5, 1024), (7, 768)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    C = shape[-1]
    judge(segmenter_kernels.add_layernorm, ops.add_layernorm, inputs(shape, shape, (C,), (C,), dtype=dtype), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_a_residual_it_agrees_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    C = shape[-1]
    judge(segmenter_kernels.layernorm, ops.layernorm, inputs(shape, (C,), (C,), dtype=dtype), 1e-6)


def test_without_a_residual_gradients_are_pytorchs() -> None:
    leaves = [x.requires_grad_() for x in inputs((2, 9, 200), (200,), (200,), dtype=torch.float16)]
    found, wanted = segmenter_kernels.layernorm(*leaves, 1e-6), ops.layernorm(*leaves, 1e-6)
    assert torch.equal(found, wanted)
    one, other = (torch.autograd.grad(y.square().sum(), leaves) for y in (found, wanted))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 9, 200), (1, 300, 64)], ids=str)
def test_gradients_agree_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    C = shape[-1]
    tensors = inputs(shape, shape, (C,), (C,), dtype=dtype)
    judge_gradients(segmenter_kernels.add_layernorm, ops.add_layernorm, tensors, 1e-6)


def test_a_second_gradient_is_refused() -> None:
    leaves = [x.requires_grad_() for x in inputs((2, 64), (2, 64), (64,), (64,), dtype=torch.float32)]
    y = segmenter_kernels.add_layernorm(*leaves, 1e-6)[1]
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_row_of_nan_leaves_the_others_bit_equal() -> None:
    x, r, weight, bias = inputs((1, 9, 200), (1, 9, 200), (200,), (200,), dtype=torch.float16)
    clean = segmenter_kernels.add_layernorm(x, r, weight, bias, 1e-6)[1]
    x[0, 4] = float("nan")
    dirty = segmenter_kernels.add_layernorm(x, r, weight, bias, 1e-6)[1]
    rows = [n for n in range(9) if n != 4]
    assert torch.equal(clean[0, rows], dirty[0, rows])
    assert dirty[0, 4].isnan().all()


def test_no_rows_launch_nothing() -> None:
    x, weight, bias = inputs((0, 64), (64,), (64,), dtype=torch.float32)
    z, y = segmenter_kernels.add_layernorm(x, x, weight, bias, 1e-6)
    assert z.shape == y.shape == segmenter_kernels.layernorm(x, weight, bias, 1e-6).shape == (0, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"r": t["r"][:, :3]}, r"r \[2, 3, 64\]: want \[2, 5, 64\]"),
        (lambda t: t | {"x": [1.0]}, "x is of type list: want a tensor"),
        (lambda t: t | {"eps": -1e-6}, "eps -1e-06: want a finite float, 0 or above"),
        (lambda t: t | {"eps": 1}, "eps 1: want a finite float"),
        (lambda t: t | {"eps": "small"}, "eps 'small': want a finite float"),
        (lambda t: t | {"bias": None}, "bias is of type NoneType: want a tensor"),
        (lambda t: t | {"weight": t["weight"][:9]}, r"weight \[9\]: want \[64\]"),
        (lambda t: t | {"r": t["r"].double()}, "r is torch.float64 and x torch.float32"),
        (lambda t: {name: x.int() for name, x in t.items()}, "x is torch.int32; this op takes float16"),
        (lambda t: t | {"x": t["x"].mT.contiguous().mT}, r"x has strides .*; call .contiguous\(\)"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    names = ("x", "r", "weight", "bias")
    tensors = dict(zip(names, inputs((2, 5, 64), (2, 5, 64), (64,), (64,), dtype=torch.float32), strict=True))
    tensors = change(tensors)
    with pytest.raises(ValueError, match=f"add_layernorm: {message}"):
        segmenter_kernels.add_layernorm(**{"eps": 1e-6} | tensors)
    if not message.startswith("r "):
        tensors.pop("r")
        with pytest.raises(ValueError, match=f"layernorm: {message}"):
            segmenter_kernels.layernorm(**{"eps": 1e-6} | tensors)


def test_too_wide_a_row_is_refused() -> None:
    x = torch.ones(1, 8193)
    with pytest.raises(ValueError, match="want rows of 1 to 8192 channels"):
        segmenter_kernels.add_layernorm(x, x, x[0], x[0], 1e-6)


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_width_has_a_tile(architecture: int) -> None:
    for power in range(0, 14):
        assert tiles.of_architecture("add_layernorm", str(2**power), architecture)["num_warps"] in (1, 2, 4, 8, 16)
