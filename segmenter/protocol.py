"""How the paper evaluates on each of its datasets: image scale, windows, and the views of multi-scale inference."""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from segmenter.config import SegmenterConfig
from segmenter.errors import ConfigError
from segmenter.inference import Inference

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
Views = Literal["single-scale", "multi-scale"]


@dataclass(frozen=True)
class Protocol:
    """A dataset's image scale and stride; the window is always the crop a network was trained on.

    side: short side of the resized images in pixels, the window's when None; ratio: the longest long side over it;
    stride: over the window.
    """

    side: int | None
    ratio: int
    stride: Fraction


# the official code's config.yml and its dataset configurations; the stride of its segm.eval.miou has been the crop less
# 32 pixels since December 2021
PROTOCOLS = {
    "ade20k": Protocol(side=None, ratio=4, stride=Fraction(1)),
    "cityscapes": Protocol(side=1024, ratio=2, stride=Fraction(2, 3)),
    "pascal_context": Protocol(side=520, ratio=8, stride=Fraction(2, 3)),
    "pascal_context_59": Protocol(side=520, ratio=8, stride=Fraction(2, 3)),
}


def paper_inference(dataset: str, views: Views, config: SegmenterConfig, inference: Inference) -> Inference:
    """`inference` with the paper's image scale, window, scales and flips for a dataset and a network, and its stride.

    A stride that `inference` has stays.
    Raises ConfigError for a dataset the paper has not, a network not trained on squares, or options that are the
    paper's to set.
    Source: Strudel et al. 2021, section 4.2, "Inference", and the official code's configuration.
    """
    if dataset not in PROTOCOLS:
        raise ConfigError(
            f"dataset {dataset}: the paper does not evaluate on it; wanted one of {', '.join(PROTOCOLS)},"
            " or pass --window, --stride, --scales, --flip and --resize in place of --paper"
        )
    window, width = config.encoder.image_size
    if window != width:
        raise ConfigError(f"network of {width}x{window} pixels: the paper's windows are square; pass --window instead")
    if replace(inference, stride=None, window_batch=1, device="auto") != Inference():
        raise ConfigError("--paper sets --window, --scales, --flip and --resize; leave them, or --paper, out")
    protocol, multi = PROTOCOLS[dataset], views == "multi-scale"
    side = protocol.side or window
    return replace(
        inference,
        window=window,
        stride=inference.stride or int(window * protocol.stride),
        scales=PAPER_SCALES if multi else (1.0,),
        flip=multi,
        resize=(protocol.ratio * side, side),
    )
