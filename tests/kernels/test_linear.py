import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter import ops
from segmenter_kernels import gemm, tiles
from segmenter_kernels.linear import case_of, linear, linear_gelu, linear_residual
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import ARCHITECTURES, DTYPES, inputs, judge, judge_gradients

# [..., K], N: a single row, rows in a batch, K that no tile divides, odd K and N that descriptors cannot describe
SHAPES = [((1, 192), 576), ((2, 197, 200), 150), ((97, 768), 64), ((3, 5, 33), 7)]


def tile_of(architecture: int, case: str, **changes: int) -> dict[str, int]:
    return {**tiles.of_architecture("linear", case, architecture), **changes}


def case_for(dtype: torch.dtype) -> str:
    return "fp32" if dtype == torch.float32 else "gelu_small"


def tensors_for(shape: tuple[int, ...], N: int, dtype: torch.dtype, residual: bool, mean: float = 1.0) -> list[Tensor]:
    shapes = [shape, (N, shape[-1]), (N,)] + ([(*shape[:-1], N)] if residual else [])
    return inputs(*shapes, dtype=dtype, mean=mean)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "N"), SHAPES, ids=str)
def test_agrees_with_float64(shape: tuple[int, ...], N: int, dtype: torch.dtype, architecture: int) -> None:
    tile = tile_of(architecture, case_for(dtype))
    judge(partial(linear_gelu, tile=tile), ops.linear_gelu, tensors_for(shape, N, dtype, False))
    judge(partial(linear_residual, tile=tile), ops.linear_residual, tensors_for(shape, N, dtype, True))
    judge(partial(linear, tile=tile), F.linear, tensors_for(shape, N, dtype, False))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("persistent", [0, 1])
def test_large_tiles_agree_with_float64(architecture: int, persistent: int) -> None:
    tile = tile_of(architecture, "plain_large", PERSISTENT=persistent, GROUP_M=2)
    tensors = inputs((1025, 72), (576, 72), (576,), dtype=torch.float16, mean=0.0)
    judge(partial(linear_gelu, tile=tile), ops.linear_gelu, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_gelu_where_it_bends_agrees_with_float64(dtype: torch.dtype, mean: float) -> None:
    tensors = inputs((97, 8), (24, 8), (24,), dtype=dtype, mean=mean)
    tensors[1] = tensors[1] / 2
    judge(linear_gelu, ops.linear_gelu, tensors)


def test_gelu_of_every_float16() -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = x[x.isfinite()].reshape(-1, 64).to(DEVICE)
    got = linear_gelu(x, torch.eye(64).to(x), x.new_zeros(64))
    truth = x.double() * torch.special.ndtr(x.double())
    # half an ulp is the rounding of any float16 result; a fiftieth more for what float32 lost before it
    ulp = (truth.abs().clamp_min(2.0**-14).log2().floor() - 10).exp2()
    assert ((got.double() - truth).abs() <= 0.52 * ulp).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinity_and_nan_pass_through_gelu(dtype: torch.dtype) -> None:
    x = torch.tensor([[float("inf")], [float("nan")], [1.0]], dtype=dtype, device=DEVICE)
    got = linear_gelu(x, x.new_ones(1, 1), x.new_zeros(1))[:, 0]
    assert got[0] == float("inf")
    assert got[1].isnan()
    assert got[2].isfinite()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_agree_with_float64(dtype: torch.dtype, architecture: int) -> None:
    tile = tile_of(architecture, case_for(dtype))
    for mean in (0.0, 1.0):
        plain, residual = (tensors_for((2, 37, 40), 72, dtype, each, mean) for each in (False, True))
        judge_gradients(partial(linear_gelu, tile=tile), ops.linear_gelu, plain)
        judge_gradients(partial(linear_residual, tile=tile), ops.linear_residual, residual)
        judge_gradients(partial(linear, tile=tile), F.linear, plain)


def test_only_wanted_gradients_are_made() -> None:
    x, weight, bias = inputs((5, 16), (8, 16), (8,), dtype=torch.float32)
    weight.requires_grad_()
    linear_gelu(x, weight, bias).sum().backward()
    expected = torch.autograd.grad(ops.linear_gelu(x, weight, bias).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)
    assert x.grad is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_leaves_the_others_bit_equal(architecture: int, bad: float) -> None:
    x, weight, bias, residual = inputs((97, 200), (72, 200), (72,), (97, 72), dtype=torch.float16)
    for op, rest in ((linear_gelu, ()), (linear_residual, (residual,))):
        tile = tile_of(architecture, "plain_small")
        clean = op(x, weight, bias, *rest, tile=tile)
        dirty_x = x.clone()
        dirty_x[40] = bad
        with np.errstate(invalid="ignore"):  # infinity times zero, in the interpreter
            dirty = op(dirty_x, weight, bias, *rest, tile=tile)
        rows = [n for n in range(97) if n != 40]
        assert torch.equal(clean[rows], dirty[rows])
        assert not dirty[40].isfinite().any()


def test_a_bad_channel_leaves_the_others_bit_equal() -> None:
    x, weight, bias = inputs((5, 200), (150, 200), (150,), dtype=torch.float16)
    clean = linear_gelu(x, weight, bias)
    weight[149] = float("nan")
    assert torch.equal(clean[:, :149], linear_gelu(x, weight, bias)[:, :149])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_written_past_the_output(monkeypatch: pytest.MonkeyPatch, architecture: int) -> None:
    M, N = 5, 150
    x, weight, bias = inputs((M, 64), (N, 64), (N,), dtype=torch.float16)
    memory = torch.full((M + 256, N), 7.0, dtype=torch.float16, device=DEVICE)
    monkeypatch.setattr(Tensor, "new_empty", lambda *_, **__: memory[:M])
    assert (linear_gelu(x, weight, bias, tile=tile_of(architecture, "gelu_small")) != 7).all()
    assert (memory[M:] == 7).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_stride_along_an_axis_of_one_is_contiguous(architecture: int) -> None:
    x, weight, bias = inputs((5, 64), (1, 64), (1,), dtype=torch.float16)
    odd = torch.empty_strided((1, 64), (3, 1), dtype=weight.dtype, device=weight.device).copy_(weight)
    tile = tile_of(architecture, "plain_small")
    assert torch.equal(linear_gelu(x, odd, bias, tile=tile), linear_gelu(x, weight, bias, tile=tile))


def test_no_rows_launch_nothing() -> None:
    x, weight, bias = inputs((0, 3, 64), (8, 64), (8,), dtype=torch.float32)
    assert linear_gelu(x, weight, bias).shape == (0, 3, 8)


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda t: t | {key: t[key][..., :3].contiguous()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("weight"), r"weight \[8, 3\]: want \['any', 64\]"),
        (without("bias"), r"bias \[3\]: want \[8\]"),
        (without("residual"), r"residual \[2, 5, 3\]: want \[2, 5, 8\]"),
        (lambda t: t | {"x": None}, "x is of type NoneType: want a tensor"),
        (lambda t: t | {"bias": None}, "bias is of type NoneType: want a tensor"),
        (lambda t: t | {"weight": t["weight"].double()}, "weight is torch.float64 and x torch.float32"),
        (lambda t: {name: x.int() for name, x in t.items()}, "x is torch.int32; this op takes float16"),
        (lambda t: t | {"x": t["x"].mT.contiguous().mT}, r"x has strides .*; call .contiguous\(\)"),
        (
            lambda t: t | {"x": t["x"][..., :0], "weight": t["weight"][:, :0]},
            r"x \[2, 5, 0\]: want rows of at least one",
        ),
        (lambda t: t | {"weight": t["weight"][:0]}, r"weight \[0, 64\]: want at least one output channel"),
    ],
)
def test_wrong_input_is_named(change: Callable[[Any], Any], message: str) -> None:
    names = ("x", "weight", "bias", "residual")
    shapes = ((2, 5, 64), (8, 64), (8,), (2, 5, 8))
    tensors = dict(zip(names, inputs(*shapes, dtype=torch.float32), strict=True))
    with pytest.raises(ValueError, match=f"linear_residual: {message}"):
        linear_residual(**change(tensors))


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_case_has_a_tile_that_fits(architecture: int) -> None:
    for epilogue, M, dtype in itertools.product(("none", "gelu", "residual", "gelu_grad"), (1, 10**6), DTYPES):
        tile, itemsize = tile_of(architecture, case_of(epilogue, M, 768, dtype)), dtype.itemsize
        stage_bytes = (tile["BLOCK_M"] + tile["BLOCK_N"]) * tile["BLOCK_K"] * itemsize
        assert stage_bytes * tile["num_stages"] <= tiles.SHARED_MEMORY_BYTES[architecture]
        assert tile["DESCRIPTORS"] == int(tiles.has_descriptors(architecture))


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_candidates_fit(architecture: int) -> None:
    found = list(gemm.candidates(architecture, 2))
    assert len(found) > 10
    for tile in found:
        assert set(tile) == {*gemm.TILE_KEYS, "num_warps", "num_stages"}
