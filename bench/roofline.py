"""What a network asks of the hardware, stage by stage, from its configuration alone: operations, and bytes moved.

Bytes count every input read and every output written once, weights included, so they are the least any implementation
moves that keeps stages apart. Divided by measured ceilings they give the time no engine of these stages can beat.
Source of the model: Williams, Waterman and Patterson 2009, "Roofline".
"""

from collections.abc import Iterable
from dataclasses import dataclass

from segmenter.config import SegmenterConfig

# in the order the network runs them
STAGES = (
    "input copy",
    "patch embedding",
    "attention",
    "projections",
    "MLP",
    "norms and residuals",
    "decoder",
    "mask scores",
    "upsample + argmax",
    "label copy",
)


@dataclass(frozen=True)
class Stage:
    """Work of one stage for a batch: floating-point operations (a multiply-add is two), and bytes of device memory."""

    name: str
    flops: float
    traffic_bytes: float
    product: bool  # whether its operations are matrix products
    host_bytes: float = 0.0  # over the bus between host and device

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The least time at these ceilings; bytes over the bus are not in it."""
        compute = self.flops / flops_per_s if self.product else 0.0
        return max(compute, self.traffic_bytes / bytes_per_s)


@dataclass(frozen=True)
class _Tokens:
    """Work of transformer blocks on [B, N, C] tokens with E bytes an element."""

    B: int
    N: int
    C: int
    hidden: int
    depth: int
    E: int

    @property
    def attention(self) -> tuple[float, float]:
        """Both products of attention, and its input [B, N, 3C] and output [B, N, C]."""
        return self.depth * 4.0 * self.B * self.N**2 * self.C, self.depth * 4.0 * self.B * self.N * self.C * self.E

    @property
    def projections(self) -> tuple[float, float]:
        """qkv and the output projection."""
        flops = 2.0 * self.B * self.N * self.C * 4 * self.C
        traffic = self.B * self.N * 6 * self.C + 4 * self.C**2 + 4 * self.C
        return self.depth * flops, self.depth * traffic * float(self.E)

    @property
    def mlp(self) -> tuple[float, float]:
        """Both linear layers; GELU and the residual ride along, but the residual is read."""
        flops = 4.0 * self.B * self.N * self.C * self.hidden
        traffic = self.B * self.N * (3 * self.C + 2 * self.hidden) + 2 * self.C * self.hidden + self.C + self.hidden
        return self.depth * flops, self.depth * traffic * float(self.E)

    @property
    def norms(self) -> tuple[float, float]:
        """A LayerNorm, and a residual add with its LayerNorm, a block."""
        size = self.B * self.N * self.C
        return self.depth * 18.0 * size, self.depth * 6.0 * size * self.E


def stages(config: SegmenterConfig, height: int, width: int, batch: int = 1, element_bytes: int = 2) -> list[Stage]:
    """Every stage for a batch of images uint8 [B, H, W, 3] to labels [B, H, W], in the order of `STAGES`.

    element_bytes: of weights and activations. Raises ValueError for a size below one patch or counts below 1.
    """
    encoder, decoder, K, E, B = config.encoder, config.decoder, config.num_classes, element_bytes, batch
    P, C = encoder.patch_size, encoder.width
    if min(height, width) < P or min(batch, element_bytes) < 1:
        raise ValueError(f"{batch} x {height}x{width}: wanted at least one image of at least one {P} pixel patch")
    h, w = -(-height // P), -(-width // P)
    n = h * w
    body = _Tokens(B, encoder.extra_tokens + n, C, encoder.mlp_width, encoder.depth, E)
    pixels, label_bytes = B * height * width, B * height * width * (1 if K <= 256 else 2)
    weights = C * 3 * P * P
    found = [
        Stage("input copy", 0.0, 3.0 * pixels, False, host_bytes=3.0 * pixels),
        Stage(
            "patch embedding",
            2.0 * B * n * weights,
            3.0 * pixels + float(E) * (weights + C + (B + 1) * body.N * C),
            True,
        ),
        Stage("attention", *body.attention, True),
        Stage("projections", *body.projections, True),
        Stage("MLP", *body.mlp, True),
        Stage("norms and residuals", *_sum((body.norms, (8.0 * B * body.N * C, 2.0 * E * B * body.N * C))), False),
    ]
    if decoder.kind == "linear":
        found.append(Stage("decoder", 2.0 * B * n * C * K, float(E) * (B * n * (C + K) + C * K), True))
        found.append(Stage("mask scores", 0.0, 0.0, False))
    else:
        D = decoder.width
        head = _Tokens(B, n + K, D, decoder.mlp_width, decoder.depth, E)
        into = 2.0 * B * n * C * D, float(E) * (B * n * (C + D) + C * D + D)
        out = 2.0 * B * (n + K) * D * D, float(E) * (2 * B * (n + K) * D + 2 * D * D)
        parts = (into, head.attention, head.projections, head.mlp, (0.0, head.norms[1]), out)  # products alone
        found.append(Stage("decoder", *_sum(parts), True))
        scores = 2.0 * B * n * K * D, float(E) * B * (n * D + K * D + n * K)
        found.append(Stage("mask scores", *scores, True))
    found.append(Stage("upsample + argmax", 7.0 * B * K * h * P * w * P, float(E) * B * K * n + label_bytes, False))
    found.append(Stage("label copy", 0.0, float(label_bytes), False, host_bytes=float(label_bytes)))
    assert tuple(stage.name for stage in found) == STAGES
    return found


def _sum(parts: Iterable[tuple[float, float]]) -> tuple[float, float]:
    flops, traffic = zip(*parts, strict=True)
    return sum(flops), sum(traffic)
