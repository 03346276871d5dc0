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
from segmenter_kernels.checks import INTERPRETED
from segmenter_kernels.quantize import FLOAT8_ARCHITECTURE
from tests.kernels.conftest import DEVICE

C, HIDDEN = 64, 256
# of what a block adds, relative: int8 makes 0.011 here and float8, in one layer more, 0.035
LARGEST_ERROR = {"int8": 0.02, "fp8": 0.06}


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


@pytest.mark.parametrize("name", KINDS)
def test_a_block_in_8_bits_is_near_its_own_in_float32(name: str) -> None:
    kind, device = KINDS[name], torch.device(DEVICE)
    if not INTERPRETED and name == "fp8" and tiles.architecture_of(device) < FLOAT8_ARCHITECTURE:
        pytest.skip("this GPU has no float8")
    x = 2 * torch.randn(2, 37, C, generator=torch.Generator().manual_seed(3))
    x[0, 5], x[1, :, 7] = 0.0, 40.0
    block = block_of(2)
    wanted = block(x)
    quantised = EightBitBlock(block, kind, device, torch.float16).to(device, torch.float16)
    with torch.inference_mode():
        got = quantised(x.to(device, torch.float16)).cpu().float()
    error = (got - wanted).norm() / (wanted - x).norm()
    assert error <= LARGEST_ERROR[name]


def test_fc2_is_in_float8_and_stays_in_16_bits_beside_int8() -> None:
    block, device = block_of(4), torch.device(DEVICE)
    q = torch.zeros(1, 3, C, device=device)
    for name, kind in KINDS.items():
        if not INTERPRETED and name == "fp8" and tiles.architecture_of(device) < FLOAT8_ARCHITECTURE:
            continue
        made = EightBitBlock(block, kind, device, torch.float16)
        scales = torch.ones(1, 3, device=device)
        hidden = made.fc1(q.to(kind), scales, gelu=True, out_scale=made.hidden_scale)
        assert hidden.dtype == (torch.float16 if name == "int8" else kind)


def test_a_layer_of_zeros_has_a_scale() -> None:
    block = block_of(5)
    for tensor in (block.mlp.fc1.weight, block.mlp.fc1.bias):
        nn.init.zeros_(tensor)
    assert largest_hidden(block.norm2, block.mlp.fc1) == 0.0
    if INTERPRETED or tiles.architecture_of(torch.device(DEVICE)) >= FLOAT8_ARCHITECTURE:
        made = EightBitBlock(block, torch.float8_e4m3fn, torch.device(DEVICE), torch.float16)
        assert float(made.hidden_scale) == 1.0  # type: ignore[arg-type]
