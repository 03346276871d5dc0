import math
from functools import partial

import pytest
import torch
from torch import Tensor

import segmenter_kernels
from segmenter import ops
from tests.kernels.harness import DEVICE, DTYPES, inputs, judge, judge_gradients

# B, N, heads, D: one token, odd numbers, channels that are no power of two, more than a block of pairs
SHAPES = [(1, 1, 1, 2), (2, 97, 3, 64), (3, 7, 2, 80), (1, 5, 2, 12), (2, 3, 16, 64)]


def tables(N: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosines and sines of angles all over the circle, the first token's 0."""
    angles = torch.randn(N, D // 2, generator=torch.Generator().manual_seed(1)) * math.pi
    angles[0] = 0
    return angles.cos().to(dtype).to(DEVICE), angles.sin().to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    B, N, heads, D = shape
    qkv = inputs((B, N, 3 * heads * D), dtype=dtype)
    judge(segmenter_kernels.rotate, ops.rotate, qkv, *tables(N, D), heads)
    # tables of the type of qkv, as a network in it has them
    judge(segmenter_kernels.rotate, ops.rotate, [*qkv, *tables(N, D, dtype)], heads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_agree_with_float64(dtype: torch.dtype) -> None:
    B, N, heads, D = SHAPES[2]
    for kind in {dtype, torch.float32}:
        qkv = inputs((B, N, 3 * heads * D), dtype=dtype)
        judge_gradients(segmenter_kernels.rotate, ops.rotate, qkv, *tables(N, D, kind), heads)


def test_a_second_gradient_is_refused() -> None:
    (qkv,) = inputs((1, 3, 24), dtype=torch.float32)
    turned = segmenter_kernels.rotate(qkv.requires_grad_(), *tables(3, 8), 1)
    (grad,) = torch.autograd.grad(turned.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_number_stays_where_it_is(broken: float) -> None:
    (qkv,) = inputs((1, 5, 3 * 2 * 8), dtype=torch.float16)
    cos, sin = tables(5, 8)
    clean = segmenter_kernels.rotate(qkv, cos, sin, 2)
    qkv[0, 2, 1] = qkv[0, 3, 2 * 16 + 1] = broken  # a query, and a value
    dirty = segmenter_kernels.rotate(qkv, cos, sin, 2)
    differ = (clean != dirty).nonzero().tolist()
    assert differ == [[0, 2, 1], [0, 2, 5], [0, 3, 33]]


@pytest.mark.parametrize("tile", [{"BLOCK": 16, "num_warps": 1}, {"BLOCK": 1024, "num_warps": 8}], ids=str)
def test_every_tile_gives_the_same(tile: dict[str, int]) -> None:
    (qkv,) = inputs((2, 3, 3 * 2 * 20), dtype=torch.float32)
    ours = segmenter_kernels.rotate(qkv, *tables(3, 20), 2, tile=tile)
    assert torch.equal(ours, segmenter_kernels.rotate(qkv, *tables(3, 20), 2))


def test_no_images_launch_nothing() -> None:
    assert segmenter_kernels.rotate(torch.ones(0, 3, 24, device=DEVICE), *tables(3, 8), 1).shape == (0, 3, 24)


ones = partial(torch.ones, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": ones(3, 48)}, r"qkv \[3, 48\]: want \['any', 'any', 'any'\]"),
        ({"heads": 5}, r"qkv \[2, 3, 48\]: want 3 x 5 heads of an even number of channels"),
        ({"heads": 16}, r"qkv \[2, 3, 48\]: want 3 x 16 heads of an even"),
        ({"heads": 2.0}, r"qkv \[2, 3, 48\]: want 3 x 2.0 heads"),
        ({"heads": 0}, r"qkv \[2, 3, 48\]: want 3 x 0 heads"),
        ({"cos": ones(4, 4)}, r"cos \[4, 4\]: want \[3, 4\]"),
        ({"sin": ones(3, 8)}, r"sin \[3, 8\]: want \[3, 4\]"),
        ({"cos": ones(3, 4).double()}, "cos is torch.float64; this op takes float16"),
        ({"sin": ones(3, 4).half()}, "sin is torch.float16 and cos torch.float32"),
        ({"cos": ones(3, 4).half(), "sin": ones(3, 4).half()}, "cos is torch.float16 and qkv torch.float32; want one"),
        ({"qkv": ones(2, 3, 48).int()}, "qkv is torch.int32; this op takes float16"),
        ({"qkv": ones(2, 48, 3).mT}, r"qkv has strides .*; call .contiguous\(\)"),
        ({"cos": ones(3, 4).requires_grad_()}, "cos needs a gradient and this kernel has none"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    good = {"qkv": ones(2, 3, 48), "cos": ones(3, 4), "sin": ones(3, 4), "heads": 2}
    with pytest.raises(ValueError, match=f"rotate: {message}"):
        segmenter_kernels.rotate(**good | change)
