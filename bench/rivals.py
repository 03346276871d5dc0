"""The rival to beat: the official implementation's way of getting labels, on our weights, in our words.

What makes it slow is all here: attention that stores its probabilities, logits of every class at image resolution, and
how they lie in memory. Sources: rstrudel/segmenter, segm/model/{blocks,decoder,segmenter,utils}.py, segm/inference.py.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter import ops as reference_ops
from segmenter.errors import EngineError
from segmenter.model import Segmenter
from segmenter.ops import label_dtype
from segmenter.preprocess import normalize
from segmenter.window import segment

LOGITS = "logits of every class at image resolution"

Layout = Callable[[Tensor, tuple[int, int]], Tensor]


def explicit_attention(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """`segmenter.ops.attention` with its [B, A, N, N] probabilities stored, as the official blocks compute it."""
    B, N, C3 = qkv.shape
    D = C3 // 3 // heads
    q, k, v = qkv.reshape(B, N, 3, heads, D).permute(2, 0, 3, 1, 4)
    probabilities = (q @ k.transpose(-2, -1) * D**-0.5).softmax(dim=-1)
    return (F.dropout(probabilities, dropout) @ v).transpose(1, 2).reshape(B, N, heads * D)


def official_ops() -> ModuleType:
    """`segmenter.ops` with attention as the official code computes it."""
    module = ModuleType("official_ops")
    functions = {name: getattr(reference_ops, name) for name in reference_ops.NAMES}
    for name, function in (functions | {"attention": explicit_attention}).items():
        setattr(module, name, function)
    return module


def classic_layout(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h w, K] -> [B, K, h, w] as einops up to 0.6 leaves it, the releases of the official code's time.

    A view with the classes innermost, and for B = 1 a batch stride that PyTorch does not take for channels-last: its
    slow interpolation for arbitrary strides follows.
    """
    B, _, K = scores.shape
    return scores.transpose(1, 2).reshape(B, K, *grid)


def channels_last_layout(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h w, K] -> [B, K, h, w] as einops from 0.7 leaves it: the same view, recognised as channels-last."""
    B, _, K = scores.shape
    return scores.reshape(B, *grid, K).permute(0, 3, 1, 2)


def official_logits(model: Segmenter, image: Tensor, layout: Layout) -> Tensor:
    """Normalised [B, 3, H, W] -> logits [B, K, H, W], every class at image resolution, in the given memory layout."""
    masks, P, (H, W) = model.masks(image), model.config.encoder.patch_size, image.shape[-2:]
    # back to [B, h w, K] as the decoder made it (no copy), so that the layout is the rival's and not our model's
    scores = masks.flatten(2).transpose(1, 2).contiguous()
    h, w = masks.shape[-2:]
    logits = F.interpolate(layout(scores, (h, w)), size=(h * P, w * P), mode="bilinear", align_corners=False)
    return logits[..., :H, :W] if (h * P, w * P) != (H, W) else logits


def official_labels(model: Segmenter, image: Tensor, layout: Layout) -> Tensor:
    """Normalised [B, 3, H, W] -> labels [B, H, W], uint8 (int16 above 256 classes), by `official_logits`."""
    return official_logits(model, image, layout).argmax(dim=1).to(label_dtype(model.config.num_classes))


def labels_by_logits(masks: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Class masks [B, K, h, w] -> labels [B, H, W] of that type: logits of the padded image, cropped, then argmax."""
    logits = F.interpolate(masks, size=padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    return logits.argmax(dim=1).to(label_dtype(masks.shape[1]))


LAYOUTS: dict[Layout, str] = {
    classic_layout: "in the memory layout of the code's time (einops up to 0.6)",
    channels_last_layout: "in the memory layout of einops from 0.7",
}


class Official:
    """The official model's forward and an argmax over its full-resolution logits; called like a `Session`.

    layout: how [B, h w, K] becomes [B, K, h, w], see above.
    """

    tail = "argmax"

    def __init__(
        self, path: Path, threads: int, layout: Layout = classic_layout, explicit_attention: bool = True
    ) -> None:
        # here, because what makes a rival needs no package that reads checkpoints
        from segmenter import load_model

        torch.set_num_threads(threads)
        self.model = load_model(path, ops=official_ops() if explicit_attention else None)
        self.layout = layout

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB [B, H, W, 3] -> labels [B, H, W]."""
        return self._labels(normalize(images, self.model.config.preprocess)).numpy()

    @torch.inference_mode()
    def masks(self, x: np.ndarray) -> np.ndarray:
        """Normalised float32 [B, 3, H, W] -> class masks [B, K, h, w]: the network alone."""
        return self.model.masks(torch.from_numpy(x)).numpy()

    def _labels(self, x: Tensor) -> Tensor:
        return official_labels(self.model, x, self.layout)

    def describe(self) -> dict[str, Any]:
        does = f"explicit attention, {LOGITS} {LAYOUTS[self.layout]}, {self.tail}"
        return {"engine": "official", "precision": "fp32", "runtime": f"torch {torch.__version__}", "does": does}

    def close(self) -> None:
        pass


class OfficialInference(Official):
    """All of the official inference: windows merged, logits resized, softmax over the classes, then argmax.

    Only for images that are one window, where it gives the labels of `Official`.
    """

    tail = "windows merged, logits resized, softmax, argmax"

    def _labels(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        if H != W:
            raise EngineError(
                f"image {H}x{W}: the official inference would cut it into square windows; use a square size"
            )

        def logits(image: Tensor) -> Tensor:
            return official_logits(self.model, image, self.layout)

        labels = [segment(logits, [(image[None], False)], (H, W), H, H).argmax(dim=0) for image in x]
        return torch.stack(labels).to(label_dtype(self.model.config.num_classes))
