from typing import Any

import pytest
import torch
from torch import Tensor

from segmenter_kernels import add_layernorm, layernorm, layernorm_quantize, quantize
from segmenter_kernels.add_layernorm import candidates
from segmenter_kernels.quantize import LARGEST
from tests.kernels.conftest import COMPILED, DEVICE
from tests.kernels.harness import DTYPES, inputs, poisoned

KINDS = tuple(LARGEST)
SHAPES = [(1, 192), (2, 97, 200), (5, 1, 33), (3, 1025)]


def in_two_steps(x: Tensor, r: Tensor | None, weight: Tensor, bias: Tensor, kind: torch.dtype) -> tuple[Tensor, ...]:
    z, y = (x, layernorm(x, weight, bias, 1e-6)) if r is None else add_layernorm(x, r, weight, bias, 1e-6)
    return z, *quantize(y, dtype=kind)


def check(x: Tensor, r: Tensor | None, weight: Tensor, bias: Tensor, kind: torch.dtype, **named: Any) -> Tensor:
    with poisoned():
        found = layernorm_quantize(x, weight, bias, 1e-6, r=r, dtype=kind, **named)
    for index, (one, other) in enumerate(zip(found, in_two_steps(x, r, weight, bias, kind), strict=True)):
        assert one.dtype == other.dtype
        if index and COMPILED and x.dtype == torch.float32:
            # nothing is rounded to 16 bits between the steps, and each kernel joins other products and sums
            # so a tie may fall to the other side: one step of int8, an eighth of a float8's value
            share, step = {torch.int8: (0.0, 1.0), torch.float32: (1e-5, 1e-6)}.get(one.dtype, (0.126, 0.01))
            torch.testing.assert_close(one.float(), other.float(), rtol=share, atol=step, equal_nan=True)
        else:
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    return found[1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_has_the_bits_of_two_steps(shape: tuple[int, ...], dtype: torch.dtype, kind: torch.dtype) -> None:
    x, r, weight, bias = inputs(shape, shape, shape[-1:], shape[-1:], dtype=dtype)
    q = check(x, None, weight, bias, kind)
    assert (q.float().abs().amax(dim=-1) == LARGEST[kind]).all()
    check(x, r, weight, bias, kind)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter, about the NaN
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_of_zeros_and_of_nan_leave_the_others_alone(kind: torch.dtype) -> None:
    x, weight, bias = inputs((9, 200), (200,), (200,), dtype=torch.float16)
    x[2], x[4, 7] = 0, float("nan")
    check(x, None, weight, torch.zeros_like(bias), kind)
    z, q, scale = layernorm_quantize(x, weight, torch.zeros_like(bias), 1e-6, dtype=kind)
    assert z is x
    assert (q[2].float() == 0).all()
    assert scale[2] == 1
    assert (q.float() * scale[:, None]).isnan().any(dim=-1).nonzero().flatten().tolist() == [4]


def test_every_candidate_gives_the_same_bits() -> None:
    x, r, weight, bias = inputs((5, 192), (5, 192), (192,), (192,), dtype=torch.float16)
    tiles = list(candidates(90, "256"))
    assert 4 <= len(tiles) <= 20
    for tile in tiles:
        check(x, r, weight, bias, torch.int8, tile=tile)


def test_no_rows_launch_nothing() -> None:
    x, weight, bias = inputs((0, 3, 64), (64,), (64,), dtype=torch.float16)
    z, q, scale = layernorm_quantize(x, weight, bias, 1e-6)
    assert z.shape == q.shape == (0, 3, 64)
    assert scale.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": torch.ones(2, 3, 64)}, r"r \[2, 3, 64\]: want \[2, 5, 64\]"),
        ({"weight": torch.ones(9)}, r"weight \[9\]: want \[64\]"),
        ({"bias": torch.ones(64).half()}, "bias is torch.float16 and x torch.float32"),
        ({"x": torch.ones(2, 64, 5).mT}, r"x has strides .*; call .contiguous\(\)"),
        ({"eps": -1.0}, "eps -1.0: want a finite float, 0 or above"),
        ({"dtype": torch.uint8}, "dtype torch.uint8: want torch.int8 or torch.float8_e4m3fn"),
        ({"r": torch.ones(2, 5, 64, requires_grad=True)}, "r needs a gradient and this kernel has none"),
        ({"weight": torch.ones(64, requires_grad=True)}, "weight needs a gradient and this kernel has none"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    given = {"x": torch.ones(2, 5, 64), "weight": torch.ones(64), "bias": torch.ones(64), "eps": 1e-6} | change
    with pytest.raises(ValueError, match=f"layernorm_quantize: {message}"):
        layernorm_quantize(**{name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in given.items()})


def test_float8_on_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmenter_kernels.checks.INTERPRETED", False)
    monkeypatch.setattr("segmenter_kernels.checks.on_gpu", lambda *_, **__: None)
    monkeypatch.setattr("segmenter_kernels.tiles.architecture_of", lambda _: 86)
    x = torch.ones(4, 4, device=DEVICE)
    with pytest.raises(ValueError, match=r"layernorm_quantize: float8 on a GPU of compute capability 8\.6: want 8\.9"):
        layernorm_quantize(x, x[0], x[0], 1e-6, dtype=torch.float8_e4m3fn)
