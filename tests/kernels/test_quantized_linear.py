from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter_kernels import tiles
from segmenter_kernels.quantize import LARGEST, quantize
from segmenter_kernels.quantized_linear import MAX_K, OPS, linear_fp8, linear_int8
from tests.kernels.conftest import DEVICE, EMULATED
from tests.kernels.harness import ARCHITECTURES, inputs, judge, poisoned

KERNELS = {torch.int8: linear_int8, torch.float8_e4m3fn: linear_fp8}
KINDS = tuple(KERNELS)
# [..., K], N: a single row, K that int8 descriptors cannot describe, K and N that no tile divides, odd K
SHAPES = [((1, 192), 576), ((2, 197, 200), 150), ((97, 768), 64), ((3, 5, 33), 7)]
# Decibels of signal over quantisation noise that `test_quantised_layer_keeps_its_signal` must leave, from theory less
# 2 dB. int8: the noise of a step s is s^2 / 12; x, of variance 2.0 with its outliers, has steps of 39 / 127 (tensor: 24
# dB) or 19 / 127 (row: 30 dB), and weights of 43 dB do not add to it. float8: 31.5 dB for each operand at any scale.
LEAST_SQNR = {
    (torch.int8, "tensor"): 22.0,
    (torch.int8, "row"): 28.0,
    (torch.float8_e4m3fn, "tensor"): 26.5,
    (torch.float8_e4m3fn, "row"): 26.5,
}


def operands(shape: tuple[int, ...], N: int, kind: torch.dtype, per_row: bool) -> list[Tensor]:
    """x, weight, their scales and a bias, with results of magnitude 10."""
    wide_x, wide_weight, bias = inputs(shape, (N, shape[-1]), (N,), dtype=torch.float32)
    random = torch.Generator().manual_seed(7)
    step = 10 / shape[-1]
    x_scale = (torch.rand(shape[:-1] if per_row else (), generator=random) + 0.5).to(DEVICE) / 20
    weight_scale = (torch.rand(N, generator=random) + 0.5).to(DEVICE) * step / 20
    to = (lambda t: (t * 20).round().clamp(-127, 127).to(kind)) if kind == torch.int8 else lambda t: (t * 20).to(kind)
    return [to(wide_x), to(wide_weight), x_scale, weight_scale, bias]


def lost_in_sums(kind: torch.dtype, K: int, tile: dict[str, int]) -> float:
    """The share of the largest value that sums of K products may be off by; they are of one sign in `operands`.

    Hopper cuts sums of float8 products below 13 bits; the interpreter and the emulator sum in float32. With its sums
    imitated (`segmenter_bench.eight_bit_ops`) 192 to 3,072 of them lose 2^-18.1 to 2^-16.8 times K: twice the most.
    With SPLIT 128 at a time lose 2^-11.2 of all, however many there are, 272 at once 2^-9.6: between them.
    """
    if EMULATED or kind == torch.int8 or tiles.architecture_of(torch.device(DEVICE)) != tiles.HOPPER:
        return 0.0
    return 2.0**-10 if tile["SPLIT"] else K * 2.0**-15.8


def plainly(dtype: torch.dtype) -> Callable[..., Tensor]:
    """What the ops mean, in the dtype the layer's tensors are given in: float64 for the truth, float32 for eager."""

    def op(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        gelu, residual = (*rest, None, None)[:2]
        wide = torch.float64 if bias.dtype == torch.float64 else torch.float32
        x_scale = x_scale[..., None] if x_scale.dim() else x_scale
        y = F.linear(x.to(wide), weight.to(wide)) * (x_scale.to(wide) * weight_scale.to(wide)) + bias.to(wide)
        y = F.gelu(y) if gelu else y
        y = y if residual is None else y + residual.to(wide)
        return y if wide == torch.float64 else y.to(dtype)

    return op


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("shape", "N"), SHAPES, ids=str)
def test_float32_results_agree_with_float64(
    shape: tuple[int, ...], N: int, kind: torch.dtype, per_row: bool, architecture: int
) -> None:
    tile = tile_of(architecture, kind)

    def kernel(*tensors: Tensor) -> Tensor:
        return KERNELS[kind](*tensors, dtype=torch.float32, tile=tile)

    judge(kernel, plainly(torch.float32), operands(shape, N, kind, per_row), eps=lost_in_sums(kind, shape[-1], tile))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("per_row", [False, True])
def test_gelu_and_residual_agree_with_float64(
    per_row: bool, kind: torch.dtype, dtype: torch.dtype, architecture: int
) -> None:
    tensors = operands((2, 97, 192), 72, kind, per_row)
    tensors[-1] = (tensors[-1] - 10).to(dtype)  # to where GELU bends
    (residual,) = inputs((2, 97, 72), dtype=dtype)
    tile = tile_of(architecture, kind)
    for gelu in (False, True):
        for extra in (None, residual):

            def kernel(*given: Tensor, gelu: bool = gelu, extra: Tensor | None = extra) -> Tensor:
                return KERNELS[kind](*given, gelu=gelu, residual=extra, dtype=dtype, tile=tile)

            def eager(*given: Tensor, gelu: bool = gelu, extra: Tensor | None = extra) -> Tensor:
                return plainly(dtype)(*given, gelu, extra)

            judge(kernel, eager, tensors, eps=lost_in_sums(kind, 192, tile))


def tile_of(architecture: int, kind: torch.dtype, size: str = "small", **changes: int) -> dict[str, int]:
    op = OPS[kind]
    if kind == torch.float8_e4m3fn and architecture < 89:
        architecture = 89
    return {**tiles.of_architecture(op, size, architecture), **changes}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("persistent", [0, 1])
def test_large_tiles_agree_with_float64(persistent: int, split: int, kind: torch.dtype) -> None:
    split = split if kind == torch.float8_e4m3fn else 0
    tile = tile_of(90, kind, "large", PERSISTENT=persistent, SPLIT=split, GROUP_M=2)

    def kernel(*tensors: Tensor) -> Tensor:
        return KERNELS[kind](*tensors, dtype=torch.float32, tile=tile)

    judge(kernel, plainly(torch.float32), operands((530, 272), 272, kind, False), eps=lost_in_sums(kind, 272, tile))


@pytest.mark.parametrize("x_sign", [-1, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_int8_extremes_are_exact(architecture: int, x_sign: int) -> None:
    K = 4096
    x = torch.full((2, K), 127 * x_sign, dtype=torch.int8, device=DEVICE)
    weight = torch.full((3, K), -127, dtype=torch.int8, device=DEVICE)
    weight[1] = 127
    one, zero = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    y = linear_int8(x, weight, one[:1], one, zero, dtype=torch.float32, tile=tile_of(architecture, torch.int8))
    whole = x_sign * 127 * 127 * K
    assert whole % 64 == 0  # so that float32 holds it
    assert y.tolist() == [[-whole, whole, -whole]] * 2


def test_the_longest_rows_of_the_largest_products_do_not_wrap() -> None:
    x = torch.full((1, MAX_K), -128, dtype=torch.int8, device=DEVICE)
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    y = linear_int8(x, x, one, one, zero, dtype=torch.float32)
    assert y.item() == 128 * 128 * MAX_K
    longer = torch.full((1, MAX_K + 1), -128, dtype=torch.int8, device=DEVICE)
    assert torch.iinfo(torch.int32).max < 128 * 128 * (MAX_K + 1)
    with pytest.raises(ValueError, match=r"linear_int8: x \[1, 131072\]: want rows of 1 to 131071 channels"):
        linear_int8(longer, longer, one, one, zero)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("per_row", [False, True])
def test_requantised_results_are_exact_away_from_halves(per_row: bool, kind: torch.dtype, architecture: int) -> None:
    tensors = operands((2, 97, 192), 72, kind, per_row)
    tensors[-1] = tensors[-1] - 5
    tile = tile_of(architecture, kind)
    truth = plainly(torch.float64)(*(x.double() for x in tensors), True)
    # a little too small a scale, so that the largest results saturate
    scale = (truth.abs().max() / LARGEST[kind] * 0.9).float()
    with poisoned():
        q = KERNELS[kind](*tensors, gelu=True, out_scale=scale, tile=tile)
    exact = (truth / scale.double()).clamp(-LARGEST[kind], LARGEST[kind])
    assert q.dtype == kind
    assert float(q.float().max()) == LARGEST[kind]
    below, above = (exact - 1e-3).float(), (exact + 1e-3).float()
    if kind == torch.int8:
        assert ((q >= below.round()) & (q <= above.round())).all()
        assert (q == exact.round()).double().mean() > 0.99
    else:
        # a thousandth of the value, since neighbours are further apart where values are large
        below, above = (exact * (1 - 1e-3 * exact.sign())).float(), (exact * (1 + 1e-3 * exact.sign())).float()
        summed = lost_in_sums(kind, 192, tile) * float(truth.abs().max() / scale)
        near = [each.clamp(-448, 448).to(kind).float() for each in (below - 1e-5 - summed, above + 1e-5 + summed)]
        assert ((q.float() >= near[0]) & (q.float() <= near[1])).all()
        assert (q.float() == exact.float().to(kind).float()).double().mean() > 0.98


@pytest.mark.parametrize(("kind", "scales"), LEAST_SQNR, ids=str)
def test_quantised_layer_keeps_its_signal(kind: torch.dtype, scales: str) -> None:
    x, weight = inputs((197, 768), (192, 768), dtype=torch.float32, mean=0.0)
    x[:, ::96] *= 10  # a few outlier channels, as a transformer's activations have
    bias = torch.zeros(192, device=DEVICE)
    scale = None if scales == "row" else x.abs().max() / LARGEST[kind]
    q, x_scale = quantize(x, scale=scale, dtype=kind)
    weight_q, weight_scale = quantize(weight, dtype=kind)
    y = KERNELS[kind](q, weight_q, x_scale, weight_scale, bias, dtype=torch.float32).double()
    truth = F.linear(x.double(), weight.double())
    sqnr = 10 * torch.log10(truth.square().mean() / (y - truth).square().mean())
    assert sqnr >= LEAST_SQNR[kind, scales], f"{float(sqnr):.1f} dB"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bad_row_leaves_the_others_bit_equal(architecture: int) -> None:
    x, weight, x_scale, weight_scale, bias = operands((97, 200), 72, torch.int8, True)
    tile = tile_of(architecture, torch.int8)
    clean = linear_int8(x, weight, x_scale, weight_scale, bias, tile=tile)
    x_scale[40] = float("nan")
    dirty = linear_int8(x, weight, x_scale, weight_scale, bias, tile=tile)
    rows = [n for n in range(97) if n != 40]
    assert torch.equal(clean[rows], dirty[rows])
    assert dirty[40].isnan().all()


def test_no_rows_launch_nothing() -> None:
    x, weight, x_scale, weight_scale, bias = operands((2, 64), 8, torch.int8, False)
    assert linear_int8(x[:0], weight, x_scale, weight_scale, bias).shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"x": t["x"].float()}, "x is torch.float32; this op takes int8"),
        (lambda t: {"weight": t["weight"].float()}, "weight is torch.float32 and x torch.int8"),
        (lambda t: {"weight": t["weight"][:, :3].contiguous()}, r"weight \[8, 3\]: want \['any', 64\]"),
        (lambda t: {"weight_scale": t["weight_scale"][:3]}, r"weight_scale \[3\]: want \[8\]"),
        (lambda t: {"weight_scale": t["weight_scale"].half()}, "weight_scale is torch.float16; this op takes float32"),
        (lambda t: {"x": None}, "x is of type NoneType: want a tensor"),
        (lambda t: {"x_scale": 0.1}, "x_scale is of type float: want a tensor"),
        (lambda t: {"x_scale": t["x_scale"].double()}, "x_scale is torch.float64 and weight_scale torch.float32"),
        (lambda t: {"x_scale": torch.ones(3, device=DEVICE)}, r"x_scale \[3\]: want \[2, 5\]"),
        (lambda t: {"bias": t["bias"][:3]}, r"bias \[3\]: want \[8\]"),
        (lambda t: {"bias": t["bias"].double()}, "bias is torch.float64; this op takes float16"),
        (lambda t: {"residual": torch.ones(2, 5, 8, device=DEVICE)}, "residual is torch.float32; .* takes float16"),
        (lambda t: {"residual": torch.ones(2, 5, 9, device=DEVICE).half()}, r"residual \[2, 5, 9\]: want \[2, 5, 8\]"),
        (lambda t: {"out_scale": torch.ones(2, device=DEVICE)}, "out_scale is .*: want one torch.float32"),
        (lambda t: {"dtype": torch.int8}, "dtype torch.int8: want torch.float16"),
        (lambda t: {"x": t["x"].mT.contiguous().mT}, r"x has strides .*; call .contiguous\(\)"),
        (lambda t: {"x": t["x"][..., :0]}, r"x \[2, 5, 0\]: want rows of 1 to 131071 channels"),
        (lambda t: {"bias": t["bias"].requires_grad_()}, "bias needs a gradient and this kernel has none"),
    ],
)
def test_wrong_input_is_named(change: Callable[[Any], Any], message: str) -> None:
    names = ("x", "weight", "x_scale", "weight_scale", "bias")
    tensors = dict(zip(names, operands((2, 5, 64), 8, torch.int8, False), strict=True))
    with pytest.raises(ValueError, match=f"linear_int8: {message}"):
        linear_int8(**{**tensors, **change(tensors)})


def test_float8_on_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmenter_kernels.checks.INTERPRETED", False)
    monkeypatch.setattr("segmenter_kernels.checks.on_gpu", lambda *_, **__: None)
    monkeypatch.setattr("segmenter_kernels.tiles.architecture_of", lambda _: 80)
    with pytest.raises(ValueError, match=r"linear_fp8: float8 on a GPU of compute capability 8\.0: want 8\.9"):
        linear_fp8(*operands((2, 64), 8, torch.float8_e4m3fn, False))


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_case_has_a_tile_that_fits(architecture: int) -> None:
    for kind, op in OPS.items():
        if kind == torch.float8_e4m3fn and architecture < 89:
            continue
        for size in ("small", "large"):
            tile = tiles.of_architecture(op, size, architecture)
            stage_bytes = (tile["BLOCK_M"] + tile["BLOCK_N"]) * tile["BLOCK_K"]
            assert stage_bytes * tile["num_stages"] <= tiles.SHARED_MEMORY_BYTES[architecture]
            assert tile["DESCRIPTORS"] == int(tiles.has_descriptors(architecture))
