"""Small networks for tests: every feature of the encoder and decoders, milliseconds to run."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from segmenter.checkpoint import save_model
from segmenter.config import DecoderConfig, EncoderConfig, SegmenterConfig
from segmenter.model import Segmenter
from segmenter.vit import Block

CLASSES = ("ground", "tree", "house", "sky", "road")


def small_config(decoder: str = "mask", classes: tuple[str, ...] = CLASSES, **encoder: Any) -> SegmenterConfig:
    values = {"patch_size": 16, "image_size": (64, 64), "width": 64, "depth": 2, "heads": 2, "mlp_width": 128}
    return SegmenterConfig(
        encoder=EncoderConfig(**(values | encoder)),
        decoder=DecoderConfig(kind=decoder, width=64, depth=1, heads=1, mlp_width=128),  # type: ignore[arg-type]
        classes=classes,
        name="small",
    )


def small_network(
    decoder: str = "mask", seed: int = 0, classes: tuple[str, ...] = CLASSES, **encoder: Any
) -> Segmenter:
    """In eval mode, with weights large enough that labels vary over an image and every parameter matters."""
    torch.manual_seed(seed)
    model = Segmenter(small_config(decoder, classes, **encoder)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def count_blocks(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let a test fail at once where more blocks than so many are made, which might take minutes and all memory."""
    count, made = itertools.count(1), Block.__init__

    def counted(*arguments: Any, **named: Any) -> None:
        assert next(count) <= most, f"more than {most} blocks were made"
        made(*arguments, **named)

    monkeypatch.setattr(Block, "__init__", counted)


def rotary_network(decoder: str = "mask", **encoder: Any) -> Segmenter:
    """As DINOv3's: rotary positions, of a file's periods, and an attention for which it matters how they turn."""
    model = small_network(decoder, positions="rotary", registers=2, layer_scale=True, **encoder)
    assert model.encoder.rotary is not None
    model.encoder.rotary.periods.mul_(1.3)
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.attn.qkv.weight[: 2 * model.config.encoder.width].mul_(2)
            block.ls1.gamma.add_(1)
    return model


@pytest.fixture(name="checkpoint")
def checkpoint_fixture(tiny_model: Segmenter, tmp_path: Path) -> Path:
    """The network of `tiny_model`, saved."""
    save_model(tiny_model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
