"""The ops of 8-bit blocks for a CPU give what the kernels give, and sums in 13 bits as an H100 sums them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import segmenter_kernels
from segmenter_bench.eight_bit_ops import EightBitOps, hopper_linear
from segmenter_engines.sessions.eight_bits import KINDS, EightBitBlock
from segmenter_kernels import workloads
from segmenter_kernels.checks import INTERPRETED
from segmenter_kernels.judging import judge
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import inputs
from tests.kernels.test_eight_bits import C, block_of
from tests.kernels.test_quantized_linear import operands

FLOAT8 = torch.float8_e4m3fn
BITS_KEPT = 2.0**-13
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="what the interpreter computes is compared")


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("name", KINDS)
def test_a_block_is_that_of_the_kernels(name: str) -> None:
    kind, device = KINDS[name], torch.device(DEVICE)
    x = 2 * torch.randn(2, 37, C, generator=torch.Generator().manual_seed(3))
    plain = EightBitBlock(block_of(2), kind, device, torch.float32, EightBitOps())
    ours = EightBitBlock(block_of(2), kind, device, torch.float32)
    with torch.inference_mode():
        # other sums round a few values to the neighbour in 8 bits; 8 bits themselves cost 5 and 21 times as much
        assert relative(plain(x), ours(x)) < 1e-3


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("requantised", [False, True])
def test_linear_layers_are_the_kernels(kind: torch.dtype, per_row: bool, gelu: bool, requantised: bool) -> None:
    tensors = operands((2, 37, 192), 72, kind, per_row)
    (residual,) = inputs((2, 37, 72), dtype=torch.float32)
    scale = torch.tensor(0.21)
    options: dict[str, Any] = {
        "gelu": gelu,
        "residual": None if requantised else residual,
        "out_scale": scale if requantised else None,
        "dtype": torch.float32,
    }
    name = "linear_int8" if kind == torch.int8 else "linear_fp8"
    ours, theirs = (getattr(ops, name)(*tensors, **options) for ops in (EightBitOps(), segmenter_kernels))
    assert ours.dtype == theirs.dtype
    # a value between two of 8 bits may go to either
    assert relative(ours.float(), theirs.float()) < (1e-3 if requantised else 1e-6)


@pytest.mark.parametrize(
    ("attention", "least", "most"),
    # one operand in float8 is off by 0.027, rows of 32 in int8 by 0.005
    [("float32", 0.0, 1e-6), ("int8 scores", 1e-3, 0.02), ("fp8 scores", 0.01, 0.06), ("fp8", 0.02, 0.08)],
)
def test_attention_is_near_itself(attention: Any, least: float, most: float) -> None:
    qkv = torch.randn(2, 37, 3 * 64, generator=torch.Generator().manual_seed(1))
    ours = EightBitOps(attention_in=attention).attention(qkv, 2)
    assert least <= relative(ours, segmenter_kernels.attention(qkv, 2)) <= most


@pytest.mark.parametrize("attention", ["int8 scores", "fp8 scores", "fp8"])
def test_equal_scores_mix_the_values_evenly(attention: Any) -> None:
    v = torch.randn(1, 37, 64, generator=torch.Generator().manual_seed(1))
    ours = EightBitOps(attention_in=attention).attention(torch.cat([torch.zeros(1, 37, 128), v], -1), 2)
    scale = v.abs().max() / 448
    held = (v / scale).to(FLOAT8).float() * scale if attention == "fp8" else v
    torch.testing.assert_close(ours, held.mean(1, keepdim=True).expand(-1, 37, -1))


def test_sums_keep_13_bits_and_are_cut_towards_0() -> None:
    one = torch.ones(1, 32)

    def summed(*values: float, together: int = 32) -> float:
        return float(hopper_linear(torch.tensor([values]), torch.ones(1, len(values)), together))

    assert float(hopper_linear(one, one, 32)) == 32.0
    assert summed(1.0, BITS_KEPT) == 1.0 + BITS_KEPT
    assert summed(1.0, 1.5 * BITS_KEPT) == 1.0 + BITS_KEPT
    assert summed(1.0, BITS_KEPT / 2, BITS_KEPT / 2) == 1.0  # each is cut before they meet
    assert summed(1.0, -BITS_KEPT / 2) == 1.0
    assert summed(-1.0, -1.5 * BITS_KEPT) == -1.0 - BITS_KEPT
    assert summed(1.0, 1.0, BITS_KEPT) == 2.0  # a bit that the products have, and their sum has not
    rest = [0.0] * 31
    assert summed(1.0, *rest, BITS_KEPT / 2, *rest, together=64) == 1.0
    assert summed(1.0, *rest, BITS_KEPT / 2, *rest, together=32) == 1.0 + BITS_KEPT / 2
    assert summed(*([0.0] * 40)) == 0.0
    # so is the sum so far, under a larger product
    assert summed(1.0, BITS_KEPT, *rest[1:], -2.0, *rest, together=64) == -1.0


def test_hoppers_sums_are_within_what_a_workloads_judge_allows_and_past_float32s() -> None:
    workload = workloads.eight_bits("linear_fp8", 1, 64, 384, torch.float32)
    arguments = x, weight, x_scale, weight_scale, bias = workload.arguments(torch.device("cpu"))
    product = hopper_linear(x.float(), weight.float(), 384)
    verdict = judge(workload, product * x_scale[..., None] * weight_scale + bias, arguments)
    assert 0.2 < verdict.share < 0.7
    assert verdict.error > 10 * judge(workload, workload.plain(*arguments), arguments).error


def test_sums_of_128_err_as_an_h100s_do() -> None:
    x, weight, *_ = operands((530, 272), 272, FLOAT8, True)
    truth = x.double() @ weight.double().T
    found = hopper_linear(x.float(), weight.float(), 128)
    # 2^-11.4 was measured, see `segmenter_kernels.judging`
    assert math.log2(float((found - truth).abs().max() / truth.abs().max())) == pytest.approx(-11.4, abs=0.4)
    whole = hopper_linear(x.float(), weight.float(), 288)
    assert (whole - truth).abs().max() > 2 * (found - truth).abs().max()
