"""A training step of a whole network on kernels: its gradient against float64's, eager's own error as the measure."""

from contextlib import nullcontext
from types import ModuleType
from typing import Literal

import pytest
import torch

import segmenter_kernels
import segmenter_kernels.training
from segmenter import ops
from segmenter.config import DecoderConfig, EncoderConfig, SegmenterConfig
from segmenter.model import Segmenter
from tests.kernels.harness import DEVICE


def gradient(
    module: ModuleType,
    dtype: torch.dtype,
    autocast: bool,
    positions: Literal["learnt", "rotary"] = "learnt",
    seed: int = 1,
) -> torch.Tensor:
    """The gradient of a loss with respect to all parameters, one float64 vector."""
    size = {"width": 64, "depth": 2, "heads": 2, "mlp_width": 128}
    config = SegmenterConfig(
        encoder=EncoderConfig(patch_size=8, image_size=(32, 40), drop_path=0.0, positions=positions, **size),
        decoder=DecoderConfig(width=64, depth=1, heads=2, mlp_width=128, dropout=0.0, drop_path=0.0),
        classes=("a", "b", "c"),
        name="tiny",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Segmenter(config, ops=module).to(DEVICE, dtype).train()
        image = torch.randn(2, 3, 32, 40).to(DEVICE, dtype)
        target = torch.randint(0, 3, (2, 32, 40)).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16) if autocast else nullcontext():
        logits = network(image)
    torch.nn.functional.cross_entropy(logits.to(torch.promote_types(dtype, torch.float32)), target).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    return torch.cat([parameter.grad.double().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("positions", ["learnt", "rotary"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast-bf16"])
def test_a_training_steps_gradient(autocast: bool, positions: Literal["learnt", "rotary"]) -> None:
    ratios = []
    # seed 0 draws classes that nearly coincide: the LayerNorm over their scores makes any rounding a hundredfold. Other
    # networks do some of that: whichever rounds better, the ratio of one is anything from 0.4 to 3.3
    for seed in range(1, 5):
        truth = gradient(ops, torch.float64, False, positions, seed)
        eager, ours = (
            gradient(each, torch.float32, autocast, positions, seed) for each in (ops, segmenter_kernels.training)
        )
        floor = truth.norm() * torch.finfo(torch.float32).eps
        ratios.append((ours - truth).norm() / torch.maximum((eager - truth).norm(), floor))
    print(f"errors are {[f'{float(ratio):.2f}' for ratio in ratios]} of eager's")
    # of several, whose geometric mean a single lucky one does not pull down
    assert torch.stack(ratios).clamp(min=0.1).log().mean().exp() <= 2


def test_attention_with_dropout_is_pytorchs() -> None:
    qkv = torch.randn(1, 9, 192, device=DEVICE)
    outputs = []
    for module in (ops, segmenter_kernels.training):
        torch.manual_seed(0)
        outputs.append(module.attention(qkv, 2, 0.5))
    assert torch.equal(*outputs)


def test_inference_kernels_alone_refuse_to_train() -> None:
    with pytest.raises(ValueError, match=r"patch_embed: .* needs a gradient and this kernel has none"):
        gradient(segmenter_kernels, torch.float32, False)
