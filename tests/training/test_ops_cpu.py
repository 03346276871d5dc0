"""Attention for training on a CPU against the reference op, in value and gradient."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from segmenter import ops
from segmenter.ops import NAMES
from segmenter.training import ops_cpu


def gradients(module: object, qkv: torch.Tensor, heads: int, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    qkv = qkv.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module.attention(qkv, heads)  # type: ignore[attr-defined]
    (mixed.double() * weight).sum().backward()
    assert qkv.grad is not None
    return mixed.detach().double(), qkv.grad.double()


@pytest.fixture
def eager_bf16() -> Iterator[None]:
    """PyTorch's attention as separate bf16 products and softmax, as training has it where no fused kernel is."""
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (3, 17, 2, 16), (2, 257, 2, 64), (5, 97, 3, 32)])
@pytest.mark.parametrize("cached_values", [4_000_000, 2 * 3 * 97 * 97])
def test_error_is_within_twice_eager_bf16s(
    shape: tuple[int, int, int, int], cached_values: int, eager_bf16: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the smaller cache has the batch of 5 split in three
    monkeypatch.setattr(ops_cpu, "_CACHED_VALUES", cached_values)
    B, N, A, D = shape
    generator = torch.Generator().manual_seed(1)
    qkv = (1 + torch.randn(B, N, 3 * A * D, generator=generator)).bfloat16()
    weight = 1 + torch.randn(B, N, A * D, generator=generator, dtype=torch.float64)
    exact = qkv.double().requires_grad_()
    truth = ops.attention(exact, A)
    (truth * weight).sum().backward()
    assert exact.grad is not None
    eager, ours = (gradients(module, qkv, A, weight) for module in (ops, ops_cpu))
    for wanted, theirs, mine in zip((truth.detach(), exact.grad), eager, ours, strict=True):
        ulp = wanted.abs().max() * 2**-8
        assert (mine - wanted).abs().max() <= max(2 * (theirs - wanted).abs().max(), ulp)


def test_float32_is_the_reference() -> None:
    qkv = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops_cpu.attention(qkv, 2), ops.attention(qkv, 2))


def test_the_other_ops_are_the_references() -> None:
    for name in set(NAMES) - {"attention"}:
        assert getattr(ops_cpu, name) is getattr(ops, name)


def test_dropout_drops() -> None:
    torch.manual_seed(0)
    qkv = torch.ones(2, 64, 48, dtype=torch.bfloat16)
    mixed = ops_cpu.attention(qkv, 2, dropout=0.5)
    assert mixed.std() > 0.05
    assert abs(mixed.float().mean() - 1) < 0.05
