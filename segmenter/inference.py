"""From a network to a function of one picture: whole images, or sliding windows over several scales and flips."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segmenter.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from segmenter.model import Segmenter

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 RGB [H, W, 3] -> integer labels [H, W]


@dataclass(frozen=True)
class Inference:
    """How a picture goes through the network."""

    window: int | None = None
    """Side in pixels of sliding windows, usually the training crop; the image goes through whole when not given."""
    stride: int | None = None
    """Pixels from one window to the next; the window's side when not given."""
    window_batch: int = 1
    """Windows in one call of the network."""
    scales: tuple[float, ...] = (1.0,)
    """Scales of the image to average over; other than 1 they need --window."""
    flip: bool = False
    """Average over the mirrored image too; needs --window."""
    resize: tuple[int, int] | None = None
    """Resize images first, their ratio kept, to the largest size within a long and a short side; needs --window.
    Both in pixels, such as 2048 512. Labels are of the image's own size all the same."""
    device: str = "auto"
    """'cpu', 'cuda', 'cuda:1', ...; 'auto' takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.window is None and (self.scales != (1.0,) or self.flip or self.resize is not None):
            raise ConfigError("--scales, --flip and --resize work through sliding windows; add --window, such as 512")
        if self.window is not None and not 1 <= (self.stride or self.window) <= self.window:
            raise ConfigError(f"window {self.window}, stride {self.stride}: wanted 1 <= stride <= window")
        if self.window_batch < 1:
            raise ConfigError(f"window batch {self.window_batch}: wanted 1 or more")
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"scales {self.scales}: wanted one or more numbers above 0")
        if self.resize is not None and min(self.resize) < 1:
            raise ConfigError(f"resize {self.resize}: wanted the longest long side and short side, such as 2048 512")


def predictor(model: "Segmenter", inference: Inference, watch: "Callable[[Tensor], None] | None" = None) -> Predict:
    """The network as a function from a picture, uint8 RGB [H, W, 3], to labels, uint8 [H, W] (int16 above 256 classes).

    The network is used on the device it is on. watch: told each picture's class probabilities, [K, H, W], before its
    labels are given. The function raises ImageError for a picture smaller than one patch.
    Raises ConfigError for windows the network cannot take, and a stride without any.
    """
    import torch

    from segmenter.ops import label_dtype
    from segmenter.preprocess import normalize
    from segmenter.window import scaled_views, segment, view_size

    config = model.config
    P = config.encoder.patch_size
    device = next(model.parameters()).device
    dtype = label_dtype(config.num_classes)
    window = inference.window
    if window is None and inference.stride is not None:
        raise ConfigError(f"--stride {inference.stride}: works through sliding windows; add --window, such as 512")
    if window is not None and window < P:
        raise ConfigError(f"window {window}: smaller than one {P}x{P} patch; wanted {P} or more")

    @torch.inference_mode()
    def predict(image: np.ndarray) -> np.ndarray:
        H, W = image.shape[:2]
        if image.shape[2] != config.encoder.channels:
            raise ImageError(
                f"image of {image.shape[2]} channels: this network takes {config.encoder.channels}; use images that"
                " have them, or a network for these"
            )
        smallest = min(inference.scales)
        if min(view_size((H, W), smallest, inference.resize)) < P:
            scaled = "" if smallest == 1.0 else f" at scale {smallest:g}"
            raise ImageError(
                f"image {W}x{H}{scaled}: smaller than one {P}x{P} patch; leave it out, or use a larger one"
            )
        if window is None:
            x = normalize(image, config.preprocess).to(device)
            if watch is None:
                return model.labels(x)[0].cpu().numpy()
            probabilities = model(x)[0].softmax(0)
        else:
            views = scaled_views(image, config.preprocess, inference.scales, inference.flip, inference.resize)
            views = [(view.to(device), flipped) for view, flipped in views]
            stride = inference.stride or window
            probabilities = segment(model, views, (H, W), window, stride, inference.window_batch)
        if watch is not None:
            watch(probabilities)
        return probabilities.argmax(0).to(dtype).cpu().numpy()

    return predict


def predict_named(predict: Predict, image: np.ndarray, name: object) -> np.ndarray:
    """`predict(image)`, whose ImageError then names the picture."""
    try:
        return predict(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
