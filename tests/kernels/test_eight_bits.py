"""Blocks of the `triton` engine whose linear layers are in 8 bits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmenter import ops
from segmenter.vit import Block
from segmenter_engines.sessions.eight_bits import KINDS, EightBitBlock, largest_hidden
from segmenter_kernels import tiles
from segmenter_kernels.quantize import FLOAT8_ARCHITECTURE
from tests.kernels.conftest import DEVICE

C, HIDDEN = 64, 256
# Of what a block adds, relative, by what `LEAST_SQNR` of test_quantized_linear.py says of an operand. float8: 0.027 for
# each of fc1's and fc2's two. int8: rows whose largest of 64 channels is 8 deviations, as those with the outlier below,
# have steps of 8 / 127, a noise of 0.018; the others' is a third of it, and the weights' 0.007.
LARGEST_ERROR = {"int8": 0.02, "fp8": 0.054}
needs_float8 = pytest.mark.skipif(
    DEVICE == "cuda" and tiles.architecture_of(torch.device(DEVICE)) < FLOAT8_ARCHITECTURE,
    reason="this GPU has no float8",
)


def block_of(seed: int, bias: float = 0.0) -> Block:
    torch.manual_seed(seed)
    block = Block(C, 2, HIDDEN, dropout=0.0, drop_path=0.0, norm_eps=1e-6, layer_scale=False, ops=ops).eval()
    for layer in (block.norm1, block.norm2):
        nn.init.normal_(layer.weight, 1.0, 0.5)
        nn.init.normal_(layer.bias, bias, 0.3)
    for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.normal_(linear.bias, bias, 0.3)
    return block.requires_grad_(False)


def hidden_of(block: Block, x: Tensor) -> Tensor:
    normed = F.layer_norm(x, (C,), block.norm2.weight.double(), block.norm2.bias.double(), block.norm2.eps)
    return F.gelu(normed @ block.mlp.fc1.weight.double().T + block.mlp.fc1.bias.double())


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0])
def test_no_row_passes_the_largest_hidden_value_and_one_reaches_it(bias: float) -> None:
    block = block_of(1, bias)
    largest = largest_hidden(block.norm2, block.mlp.fc1)
    scaled = block.mlp.fc1.weight.double() * block.norm2.weight.double()
    centred = scaled - scaled.mean(dim=1, keepdim=True)
    # the row along an output channel's own weights makes the most of it, one way or the other
    rows = torch.cat([centred, -centred, 1000 * torch.randn(500, C).double(), torch.zeros(1, C).double()])
    hidden = hidden_of(block, rows)
    assert float(hidden.abs().max()) <= largest
    constant = block.mlp.fc1.weight.double() @ block.norm2.bias.double() + block.mlp.fc1.bias.double()
    reached = math.sqrt(C) * centred.norm(dim=1) + constant.abs()
    channel = int(reached.argmax())
    row = centred[channel] * constant[channel].sign()
    product = F.layer_norm(row[None], (C,), eps=1e-12) @ centred[channel] + constant[channel]
    assert abs(float(product)) == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("name", ["int8", pytest.param("fp8", marks=needs_float8)])
def test_a_block_in_8_bits_is_near_its_own_in_float32(name: str) -> None:
    kind, device = KINDS[name], torch.device(DEVICE)
    x = 2 * torch.randn(2, 37, C, generator=torch.Generator().manual_seed(3))
    x[0, 5], x[1, :, 7] = 0.0, 40.0
    block = block_of(2)
    wanted = block(x)
    quantised = EightBitBlock(block, kind, device, torch.float16).to(device, torch.float16)
    with torch.inference_mode():
        got = quantised(x.to(device, torch.float16)).cpu().float()
    error = (got - wanted).norm() / (wanted - x).norm()
    assert error <= LARGEST_ERROR[name]


def test_fc2_stays_in_16_bits_beside_int8() -> None:
    block, device = block_of(4), torch.device(DEVICE)
    made = EightBitBlock(block, torch.int8, device, torch.float16)
    q, scales = torch.zeros(1, 3, C, dtype=torch.int8, device=device), torch.ones(1, 3, device=device)
    assert made.fc1(q, scales, gelu=True, out_scale=made.hidden_scale).dtype == torch.float16
    assert made.fc2 is block.mlp.fc2


@needs_float8
def test_float8s_largest_number_is_the_largest_value_between_fc1_and_fc2() -> None:
    block, device, kind = block_of(4), torch.device(DEVICE), torch.float8_e4m3fn
    made = EightBitBlock(block, kind, device, torch.float16)
    q, scales = torch.zeros(1, 3, C, device=device).to(kind), torch.ones(1, 3, device=device)
    assert made.fc1(q, scales, gelu=True, out_scale=made.hidden_scale).dtype == kind
    assert made.hidden_scale is not None
    largest = float(made.hidden_scale) * float(torch.finfo(kind).max)
    assert largest == pytest.approx(largest_hidden(block.norm2, block.mlp.fc1), rel=1e-6)
    assert largest != pytest.approx(largest_hidden(block.norm1, block.mlp.fc1), rel=1e-2)


@needs_float8
def test_a_layer_of_next_to_nothing_has_a_scale() -> None:
    for value in (0.0, 1e-44):  # float32 holds neither divided by 448
        block = block_of(5)
        nn.init.constant_(block.mlp.fc1.weight, 0.0)
        nn.init.constant_(block.mlp.fc1.bias, value)
        assert largest_hidden(block.norm2, block.mlp.fc1) == pytest.approx(value, rel=0.1)
        made = EightBitBlock(block, torch.float8_e4m3fn, torch.device(DEVICE), torch.float16)
        assert made.hidden_scale is not None
        assert float(made.hidden_scale) == 1.0
