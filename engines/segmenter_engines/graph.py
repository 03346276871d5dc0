"""What an exported graph computes, as the PyTorch module the exporter traces.

At a fixed size it is the network as it stands, its position embeddings resized before the trace. Between sizes it is
the same network with what depends on them written in tensors: padding, the resized embeddings or the angles of rotary
positions, and cropping.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmenter.config import Preprocess
from segmenter.model import Segmenter
from segmenter.preprocess import affine
from segmenter.vit import DINOV2_OFFSET, Encoder

OUTPUTS = ("labels", "masks", "logits", "confidence")  # in the order a graph has them

Span = tuple[int, int, int]  # min, opt, max; three times the same for what is fixed


def is_range(span: Span) -> bool:
    return span[0] < span[2]


class Graph(nn.Module):
    """Images to `outputs`: labels, class masks, logits, and the winning class's probability.

    Images are normalised float32 [B, 3, H, W], or uint8 [B, H, W, 3] where `preprocess` is given. height, width: what
    the graph takes. The network computes in `dtype`; its LayerScale must be folded. scaled: between sizes, the op that
    makes labels is told how many times the grid, and not how large, as `segmenter_kernels.library` has it.
    """

    def __init__(
        self,
        model: Segmenter,
        dtype: torch.dtype,
        outputs: Sequence[str],
        height: Span,
        width: Span,
        preprocess: Preprocess | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.scaled = scaled
        self.ranged, learnt = is_range(height) or is_range(width), model.encoder.pos_embed is not None
        self.position = Positions(model.encoder, height, width, dtype) if self.ranged and learnt else None
        self.model, self.dtype, self.outputs = model.to(dtype), dtype, outputs
        self.normalize = Normalize(preprocess) if preprocess is not None else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = images if self.normalize is None else self.normalize(images)
        (H, W), P = x.shape[-2:], self.model.config.encoder.patch_size
        # not -(-H // P): ONNX rounds a quotient towards zero
        h, w = (H + P - 1) // P, (W + P - 1) // P
        padded = h * P, w * P
        masks = self._masks(x.to(self.dtype), (h, w))
        if self.ranged and self.scaled:
            labels = self.model.ops.upsample_argmax(masks, (-P, -P))[:, :H, :W]
        else:
            labels = self.model.ops.upsample_argmax(masks, padded, (H, W))
        results = {"masks": masks.float(), "labels": labels}
        if "logits" in self.outputs or "confidence" in self.outputs:
            upsampled = F.interpolate(masks, padded, mode="bilinear", align_corners=False)
            logits = results["logits"] = upsampled[..., :H, :W].float()
            if "confidence" in self.outputs:
                results["confidence"] = logits.softmax(dim=1).amax(dim=1)
        return tuple(results[name] for name in self.outputs)

    def _masks(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """`Segmenter.masks`, whose own way asks whether to pad and resize, which a graph between sizes cannot."""
        if not self.ranged:
            return self.model.masks(x)
        (H, W), (h, w), encoder = x.shape[-2:], grid, self.model.encoder
        P, proj = encoder.config.patch_size, encoder.patch_embed.proj
        assert proj.bias is not None
        padded = F.pad(x, (0, w * P - W, 0, h * P - H))
        # at the grid of learnt positions, for at another it would resize them; there are none to resize if rotary
        position, tokens = encoder.embedding(grid if self.position is None else encoder.config.grid)
        if self.position is not None:
            position = self.position(h, w)
        embedded = self.model.ops.patch_embed(padded, proj.weight, proj.bias, position, tokens)
        return self.model.masks_of(embedded, grid)


class Normalize(nn.Module):
    """uint8 RGB [B, H, W, 3] -> float32 [B, 3, H, W], bit for bit as `segmenter.preprocess.normalize`."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        for name, values in zip(("scale", "shift"), affine(preprocess), strict=True):
            self.register_buffer(name, torch.from_numpy(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        # the cast comes first: TensorRT does nothing else with uint8
        return images.float().permute(0, 3, 1, 2) * self.get_buffer("scale") + self.get_buffer("shift")


class Positions(nn.Module):
    """`Encoder.embedding`'s position embeddings at any grid of a range: (h, w) -> [1, E + h w, C].

    Interpolation is linear in the embeddings, so each axis is a product with a matrix of kernel weights made from the
    grid's size. `Resize` cannot say what `dinov2` does, whose places are those of a larger grid than it makes, and
    runtimes differ in its cubic; these products are the same everywhere. Weights are made in float32, the products in
    `dtype`.
    Source: Keys 1981, equation 4, with a = -0.75 as PyTorch has it.
    """

    def __init__(self, encoder: Encoder, height: Span, width: Span, dtype: torch.dtype) -> None:
        super().__init__()
        assert encoder.pos_embed is not None
        config, position = encoder.config, encoder.pos_embed.detach()
        self.grid, self.mode, E = config.grid, config.position_resize, config.extra_tokens
        # as the encoder has it, the count decides and not the shape: such grids take the embeddings as they are
        spans = [
            range(-(-span[0] // config.patch_size), -(-span[2] // config.patch_size) + 1) for span in (height, width)
        ]
        same = {(h, w) for h in spans[0] for w in spans[1] if h * w == position.shape[1] - E}
        # resizing to its own grid changes nothing, but for dinov2
        self.asks_count = bool(same - ({self.grid} if self.mode != "dinov2" else set()))
        planes = position[:, E:].reshape(1, *self.grid, -1).permute(0, 3, 1, 2)
        # a border as wide as the kernel reaches, so that no weight needs to know where the grid ends
        bordered = F.pad(planes.float(), (2, 2, 2, 2), mode="replicate")
        bordered = bordered[0].transpose(0, 1).flatten(0, 1)  # [(h + 4) C, w + 4]
        self.register_buffer("bordered", bordered.to(dtype, copy=True))
        self.register_buffer("extra", position[:, :E].to(dtype, copy=True))
        self.register_buffer("whole", position[0, E:].to(dtype, copy=True) if self.asks_count else None)

    def forward(self, h: int, w: int) -> Tensor:
        bordered = self.get_buffer("bordered")
        down, along = (self._weights(new, old).to(bordered.dtype) for new, old in zip((h, w), self.grid, strict=True))
        # products of matrices alone: OpenVINO 2026.4 loses a size in those of broadcast stacks; and the constant is on
        # the left, where it cannot be taken for the weight of a linear layer
        rows = (bordered @ along.t()).reshape(down.shape[1], -1)  # [h + 4, C w']
        C = bordered.shape[0] // down.shape[1]
        tokens = (down @ rows).reshape(h, C, w).transpose(1, 2).reshape(h * w, C)
        if self.asks_count:
            whole, places = self.get_buffer("whole"), torch.arange(h * w)
            last = whole.shape[0] - 1
            tokens = torch.where(places[-1] == last, whole[places.clamp(max=last)], tokens)
        return torch.cat((self.get_buffer("extra"), tokens[None]), dim=1)

    def _weights(self, new: int, old: int) -> Tensor:
        """What each of `new` places takes of `old` ones and the border of two around them, float32 [new, old + 4]."""
        step = old / (new + DINOV2_OFFSET) if self.mode == "dinov2" else old / new
        places = (torch.arange(new, dtype=torch.float32) + 0.5) * step - 0.5
        away = (places[:, None] - torch.arange(-2, old + 2, dtype=torch.float32)).abs()
        if self.mode == "bilinear":
            return (1.0 - away).clamp(min=0.0)
        a = -0.75
        near = ((a + 2.0) * away - (a + 3.0)) * away * away + 1.0
        far = (((away - 5.0) * away + 8.0) * away - 4.0) * a
        return torch.where(away < 1.0, near, torch.where(away < 2.0, far, torch.zeros_like(away)))
