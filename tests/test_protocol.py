"""The paper's way to evaluate each dataset, as its official code's configuration has it."""

from dataclasses import replace

import pytest

from segmenter.config import SegmenterConfig, variant
from segmenter.errors import ConfigError
from segmenter.inference import Inference
from segmenter.protocol import PAPER_SCALES, paper_inference


@pytest.mark.parametrize(
    ("dataset", "side", "resize", "stride"),
    [
        ("ade20k", 512, (2048, 512), 512),
        ("ade20k", 640, (2560, 640), 640),
        ("pascal_context", 480, (4160, 520), 320),
        ("cityscapes", 768, (2048, 1024), 512),
    ],
)
def test_windows_and_image_scales_of_the_paper(dataset: str, side: int, resize: tuple[int, int], stride: int) -> None:
    config = variant("Seg-L-Mask/16", 19, image_size=(side, side))
    single = paper_inference(dataset, "single-scale", config, Inference(window_batch=4, device="cpu"))
    assert single == Inference(window=side, stride=stride, window_batch=4, resize=resize, device="cpu")
    multi = paper_inference(dataset, "multi-scale", config, Inference())
    assert multi == Inference(window=side, stride=stride, resize=resize, scales=PAPER_SCALES, flip=True)
    assert PAPER_SCALES == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def test_a_stride_of_ones_own_stays() -> None:
    config = variant("Seg-L-Mask/16", 150, image_size=(640, 640))
    own = paper_inference("ade20k", "multi-scale", config, Inference(stride=608))
    assert own == replace(paper_inference("ade20k", "multi-scale", config, Inference()), stride=608)
    with pytest.raises(ConfigError, match="window 640, stride 641: wanted 1 <= stride <= window"):
        paper_inference("ade20k", "single-scale", config, Inference(stride=641))


def test_what_is_not_the_papers_is_refused(tiny_config: SegmenterConfig) -> None:
    with pytest.raises(ConfigError, match="camvid: the paper does not evaluate on it; wanted one of ade20k"):
        paper_inference("camvid", "single-scale", tiny_config, Inference())
    with pytest.raises(ConfigError, match="--paper sets --window"):
        paper_inference("ade20k", "multi-scale", tiny_config, Inference(window=32))
    wide = replace(tiny_config, encoder=replace(tiny_config.encoder, image_size=(32, 64)))
    with pytest.raises(ConfigError, match="network of 64x32 pixels: the paper's windows are square"):
        paper_inference("ade20k", "single-scale", wide, Inference())
