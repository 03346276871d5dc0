"""Work counted from the configuration: against PyTorch's own counter, and the figures known of the paper's networks."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segmenter.config import SegmenterConfig, variant
from segmenter.model import Segmenter
from segmenter_bench.rivals import official_ops
from segmenter_bench.roofline import STAGES, Stage, stages


def small(name: str, **changes: object) -> SegmenterConfig:
    config = variant(name, 7, image_size=(64, 96))
    return replace(config, encoder=replace(config.encoder, depth=3), **changes)


def product_flops(found: list[Stage]) -> float:
    """Operations of all matrix products: what papers count."""
    return sum(stage.flops for stage in found if stage.product)


def bound_seconds(found: list[Stage], flops_per_s: float, bytes_per_s: float) -> float:
    """The least time of all stages one after the other."""
    return sum(stage.seconds(flops_per_s, bytes_per_s) for stage in found)


@pytest.mark.parametrize("name", ["Seg-Ti-Mask/16", "Seg-Ti/16", "Seg-DeiT-Ti-Mask/16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_products_are_those_pytorch_counts(name: str, batch: int) -> None:
    config = small(name)
    # the counter knows no fused attention on a CPU
    model = Segmenter(config, official_ops()).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.masks(torch.zeros(batch, 3, 60, 90))
    assert product_flops(stages(config, 60, 90, batch)) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "gflops", "attention_share"),
    [("Seg-Ti-Mask/16", 25.3, 0.47), ("Seg-B-Mask/16", 258.6, 0.18), ("Seg-L-Mask/16", 1342, 0.21)],
)
def test_the_papers_networks_ask_what_is_known_of_them(name: str, gflops: float, attention_share: float) -> None:
    config = variant(name)
    found = stages(config, *config.encoder.image_size)
    assert product_flops(found) / 1e9 == pytest.approx(gflops, rel=0.01)
    side, C, K = config.encoder.grid[0], config.encoder.width, config.num_classes
    mixed = 4 * C * (config.encoder.depth * (side**2 + 1) ** 2 + 2 * (side**2 + K) ** 2)
    assert mixed / product_flops(found) == pytest.approx(attention_share, abs=0.01)


def test_stages_come_in_order_and_scale_with_the_batch() -> None:
    config = variant("Seg-B-Mask/16")
    one, eight = stages(config, 512, 512), stages(config, 512, 512, 8)
    assert tuple(stage.name for stage in one) == STAGES
    assert product_flops(eight) == 8 * product_flops(one)
    # weights are read once a batch
    assert sum(stage.traffic_bytes for stage in eight) < 8 * sum(stage.traffic_bytes for stage in one)
    assert {stage.name: stage.host_bytes for stage in eight if stage.host_bytes} == {
        "input copy": 8 * 512 * 512 * 3,
        "label copy": 8 * 512 * 512,
    }


def test_the_bound_is_the_larger_of_work_and_traffic() -> None:
    found = stages(variant("Seg-B-Mask/16"), 512, 512, 8)
    assert bound_seconds(found, 1e15, 1e30) == pytest.approx(product_flops(found) / 1e15)
    traffic = sum(stage.traffic_bytes for stage in found)
    assert bound_seconds(found, 1e30, 1e12) == pytest.approx(traffic / 1e12)


@pytest.mark.parametrize("arguments", [(15, 512), (512, 512, 0), (512, 512, 1, 0)])
def test_sizes_that_are_none_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="wanted at least one image"):
        stages(variant("Seg-Ti-Mask/16"), *arguments)
