from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segmenter_kernels import tiles
from segmenter_kernels.quantize import LARGEST, MAX_C, candidates, quantize
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import DTYPES, inputs, poisoned

KINDS = tuple(LARGEST)
SHAPES = [(1, 192), (2, 197, 200), (97, 1, 33), (3, 1025)]


def plainly(x: Tensor, scale: Tensor | None, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """What `quantize` means."""
    wide, largest = x.float(), LARGEST[kind]
    if scale is None:
        scale = wide.abs().amax(dim=-1) / largest
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        y = wide / scale[..., None]
    else:
        y = wide / scale
    y = y.clamp(-largest, largest)
    return (y.nan_to_num(0).round() if kind == torch.int8 else y).to(kind), scale


def check(x: Tensor, scale: Tensor | None, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    with poisoned():
        q, scales = quantize(x, scale=scale, dtype=kind)
    # on the CPU, which divides: PyTorch multiplies by the rounded inverse of a number on a GPU
    wanted, wanted_scales = plainly(x.cpu(), None if scale is None else scale.cpu(), kind)
    assert q.dtype == kind
    assert torch.equal(q.view(torch.uint8).cpu(), wanted.view(torch.uint8))
    assert torch.equal(scales.cpu(), wanted_scales)
    return q, scales


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_has_the_bits_of_the_plain_expression(shape: tuple[int, ...], dtype: torch.dtype, kind: torch.dtype) -> None:
    (x,) = inputs(shape, dtype=dtype)
    check(x, None, kind)
    check(x, torch.tensor(3 / LARGEST[kind], device=DEVICE), kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_halves_round_to_even_and_the_rest_saturates(kind: torch.dtype) -> None:
    halves = torch.arange(-300, 301, dtype=torch.float32, device=DEVICE) / 2
    far = torch.tensor([1e4, -1e4, 6e4, -6e4, float("inf"), -float("inf")], device=DEVICE)
    q, _ = check(torch.cat((halves, far)).half(), torch.ones(1, device=DEVICE), kind)
    largest = LARGEST[kind]
    assert q[-6:].tolist() == [largest, -largest] * 3
    if kind == torch.int8:
        assert q[300:306].tolist() == [0, 0, 1, 2, 2, 2]
        assert q.min() == -127


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_row_s_largest_becomes_the_largest(kind: torch.dtype) -> None:
    (x,) = inputs((9, 200), dtype=torch.float16)
    q, scale = check(x, None, kind)
    assert (q.float().abs().amax(dim=-1) == LARGEST[kind]).all()
    step = 0.5 if kind == torch.int8 else 16  # half the distance of two neighbours, at the largest magnitude
    error = (q.float() * scale[:, None] - x.float()).abs()
    assert (error <= step * scale[:, None] * 1.001).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_zeros_come_back_as_zeros(kind: torch.dtype) -> None:
    x = torch.zeros(3, 64, dtype=torch.float16, device=DEVICE)
    x[1] = 1
    q, scale = check(x, None, kind)
    assert torch.equal(q.float() * scale[:, None], x.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_keep_their_sign_in_float8(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, -0.0, 3.0, -3.0], [-0.0, 0.0, -0.0, 0.0]], dtype=dtype, device=DEVICE).repeat(1, 33)
    for scale in (None, torch.tensor(0.37, device=DEVICE)):
        q, _ = check(x, scale, torch.float8_e4m3fn)
        assert torch.equal(q.float().signbit(), x.signbit())


@pytest.mark.parametrize("tiny", [2.0**-24, 1e-40, 1e-45])
def test_tiny_rows_stay_finite(tiny: float) -> None:
    x = torch.tensor([[tiny, 0.0, -tiny]], device=DEVICE)
    q, scale = quantize(x)
    assert (q.float() * scale[:, None]).isfinite().all()
    assert q[0, 1] == 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_stays_bad_and_leaves_the_others_bit_equal(bad: float, kind: torch.dtype) -> None:
    (x,) = inputs((9, 200), dtype=torch.float16)
    clean, clean_scale = quantize(x, dtype=kind)
    x[4, 7] = bad
    with np.errstate(invalid="ignore"):  # infinity times zero, in the interpreter
        dirty, dirty_scale = quantize(x, dtype=kind)
    rows = [n for n in range(9) if n != 4]
    assert torch.equal(clean[rows].view(torch.uint8), dirty[rows].view(torch.uint8))
    assert torch.equal(clean_scale[rows], dirty_scale[rows])
    assert dirty_scale[4].isnan()
    assert (dirty[4].float() * dirty_scale[4]).isnan().all()


def test_a_nan_under_one_scale_is_zero_in_int8_and_stays_in_float8() -> None:
    x, scale = torch.full((2, 8), float("nan"), device=DEVICE), torch.ones((), device=DEVICE)
    assert (quantize(x, scale=scale)[0] == 0).all()
    assert quantize(x, scale=scale, dtype=torch.float8_e4m3fn)[0].float().isnan().all()


def test_no_rows_launch_nothing() -> None:
    q, scale = quantize(torch.ones(0, 3, 64, device=DEVICE))
    assert q.shape == (0, 3, 64)
    assert scale.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 0)}, r"x \[2, 0\]: want rows of 1 to 8192 channels"),
        ({"x": torch.ones(2, MAX_C + 1)}, r"x \[2, 8193\]: want rows of 1 to 8192 channels"),
        ({"x": torch.ones(2, 4).double()}, "x is torch.float64; this op takes float16"),
        ({"x": torch.ones(4, 2).mT}, r"x has strides \[1, 2\]; call .contiguous\(\)"),
        ({"x": torch.ones(2, 4, requires_grad=True)}, "x needs a gradient and this kernel has none"),
        ({"dtype": torch.uint8}, "dtype torch.uint8: want torch.int8 or torch.float8_e4m3fn"),
        ({"x": [1.0]}, "x is of type list: want a tensor"),
        ({"scale": 0.1}, "scale is of type float: want a tensor"),
        ({"scale": torch.ones(2)}, r"scale is torch.float32 \[2\]: want one torch.float32"),
        ({"scale": torch.ones(()).half()}, r"scale is torch.float16 \[\]: want one torch.float32"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    given = {"x": torch.ones(2, 4)} | change
    with pytest.raises(ValueError, match=f"quantize: {message}"):
        quantize(**{name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in given.items()})


def test_float8_on_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmenter_kernels.checks.INTERPRETED", False)
    monkeypatch.setattr("segmenter_kernels.checks.on_gpu", lambda *_, **__: None)
    monkeypatch.setattr("segmenter_kernels.tiles.architecture_of", lambda _: 86)
    message = "quantize: float8 on a GPU of compute capability 8.6: want 8.9"
    with pytest.raises(ValueError, match=message):
        quantize(torch.ones(2, 4, device=DEVICE), dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_width_has_a_tile_and_candidates(architecture: int) -> None:
    for power in range(0, 14):
        assert tiles.of_architecture("quantize", str(2**power), architecture)["num_warps"] in (1, 2, 4, 8, 16)
    for width in (256, 1024, 4096):
        assert all(tile["BLOCK_M"] * width >= 128 for tile in candidates(architecture, width))


def test_every_candidate_gives_the_same_bits() -> None:
    (x,) = inputs((5, 192), dtype=torch.float16)
    wanted = quantize(x)
    for tile in candidates(80, 256):
        assert all(map(torch.equal, quantize(x, tile=tile), wanted))
