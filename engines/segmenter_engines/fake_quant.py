"""A network in PyTorch that computes as its Q/DQ graph does, and can still learn.

Values are rounded to 8 bits and back in float32, with the activation scales of the graph and weight scales that follow
the weights. A gradient passes a rounding as if it were not there, and stops at values that are clipped.
Source: Jacob et al., CVPR 2018; the straight-through estimator of Bengio et al., 2013.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmenter.decoder import MaskDecoder
from segmenter.errors import EngineError
from segmenter.model import Segmenter
from segmenter.rotary import Rotation, turned
from segmenter.vit import Block
from segmenter_engines.formats import FP8, INT8, Format, values_of
from segmenter_engines.qdq import Quantised, layer_name, quantised_layers, weight_scale
from segmenter_engines.wiring import Wiring


class _Fake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: int, form: Format) -> Tensor:
        # a scale is rounded to 16 bits, which may leave the value it was made for beyond the last step
        low, high = form.low - form.half - zero, form.high + form.half - zero
        ctx.save_for_backward((x >= low * scale) & (x <= high * scale))
        return form.fake(x, scale, zero)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def fake(x: Tensor, scale: Tensor, zero: int, form: Format) -> Tensor:
    """float32 x through 8 bits and back; its gradient is 1 where that rounds and 0 where it clips."""
    result: Tensor = _Fake.apply(x, scale, zero, form)
    return result


class FakeLinear(nn.Module):
    """A linear layer on 8-bit inputs and weights, sharing the parameters of `linear`. [..., I] -> [..., O]."""

    scale: Tensor

    def __init__(self, linear: nn.Linear, layer: Quantised, real: int) -> None:
        super().__init__()
        self.linear, self.steps, self.real = linear, layer.steps, real
        self.weights = FP8 if self.steps.form is FP8 else INT8
        self.register_buffer("scale", torch.tensor(self.steps.scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        scale = weight_scale(weight.detach(), self.weights, self.real, axis=1)
        return F.linear(
            fake(x - self.steps.shift, self.scale, self.steps.zero, self.steps.form) + self.steps.shift,
            fake(weight, scale, 0, self.weights),
            self.linear.bias,
        )


class FakeBlock(nn.Module):
    """A `segmenter.vit.Block` with some linear layers replaced, without dropout. [B, N, C] -> [B, N, C]."""

    def __init__(self, block: Block, layers: Mapping[str, Quantised], real: int) -> None:
        super().__init__()
        self.block = block
        plain = {"attn.qkv": block.attn.qkv, "attn.proj": block.attn.proj}
        plain |= {"mlp.fc1": block.mlp.fc1, "mlp.fc2": block.mlp.fc2}
        self.qkv, self.proj, self.fc1, self.fc2 = (
            FakeLinear(linear, layers[name], real) if name in layers else linear for name, linear in plain.items()
        )

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        block = self.block
        qkv = turned(block.ops, self.qkv(block.norm1(x)), rotation, block.attn.heads)
        branch = self.proj(block.ops.attention(qkv, block.attn.heads))
        norm = block.norm2
        x, normed = block.ops.add_layernorm(x, branch, norm.weight, norm.bias, norm.eps)
        return x + self.fc2(F.gelu(self.fc1(normed)))


@contextmanager
def fake_quantised(model: Segmenter, layers: Mapping[str, Quantised], real: int) -> Iterator[None]:
    """The network with its linear layers as a Q/DQ graph has them, inside the block; its parameters are the same ones.

    layers: as `quantised_layers` gives them; real: ONNX type of the graph's floating-point values. LayerScale must be
    folded before.
    Raises EngineError for a layer the network has not.
    """
    known = {parameter for parameter, _ in model.named_parameters()}
    by_name = {layer_name(weight): layer for weight, layer in layers.items()}
    if strange := sorted(name for name in by_name if f"{name}.weight" not in known):
        raise EngineError(f"the recipe quantises {strange[0]}, which the checkpoint has not; pass the one it is of")
    parts: list[tuple[str, Any]] = [("encoder", model.encoder)]
    decoder = model.decoder
    if isinstance(decoder, MaskDecoder):
        parts.append(("decoder", decoder))
    originals = [part.blocks for _, part in parts]
    projection = decoder.proj_dec if isinstance(decoder, MaskDecoder) else None
    try:
        for name, part in parts:
            part.blocks = nn.ModuleList(
                FakeBlock(cast(Block, block), _within(by_name, f"{name}.blocks.{index}."), real)
                for index, block in enumerate(part.blocks)
            )
        if isinstance(decoder, MaskDecoder) and "decoder.proj_dec" in by_name:
            decoder.proj_dec = FakeLinear(decoder.proj_dec, by_name["decoder.proj_dec"], real)  # type: ignore[assignment]
        yield
    finally:
        for (_, part), blocks in zip(parts, originals, strict=True):
            part.blocks = blocks
        if isinstance(decoder, MaskDecoder) and projection is not None:
            decoder.proj_dec = projection


def _within(layers: Mapping[str, Quantised], prefix: str) -> dict[str, Quantised]:
    return {name.removeprefix(prefix): layer for name, layer in layers.items() if name.startswith(prefix)}


@torch.no_grad()
def take_smoothing(model: Segmenter, graph: onnx.GraphProto) -> int:
    """Smooth a network as a Q/DQ graph made of it was, in place; returns how many norms were smoothed.

    What a norm was divided by is the ratio of its parameters to the graph's; any such factors leave the network as it
    was in floating point, because the weights behind the norm are multiplied by them.
    """
    wiring = Wiring(graph)
    readers: dict[str, list[str]] = {}
    for weight, layer in quantised_layers(graph).items():
        readers.setdefault(layer.activation, []).append(weight)
    modules = dict(model.named_modules())
    found = 0
    for activation, weights in readers.items():
        node = wiring.made_by.get(activation)
        if node is None or node.op_type != "LayerNormalization" or "/smooth/" not in node.input[1]:
            continue
        linears = [cast(nn.Linear, modules[layer_name(weight)]) for weight in weights]
        norm = _norm_before(modules, weights[0])
        there = torch.stack([values_of(wiring.constants[name]) for name in node.input[1:3]])
        here = torch.stack([norm.weight, norm.bias])
        larger = there.abs().argmax(0, keepdim=True)
        divisor = (here.gather(0, larger) / there.gather(0, larger))[0]
        divisor = torch.where(divisor.isfinite() & (divisor > 0), divisor, 1.0)
        norm.weight.div_(divisor)
        norm.bias.div_(divisor)
        for linear in linears:
            linear.weight.mul_(divisor)
        found += 1
    return found


def _norm_before(modules: Mapping[str, nn.Module], weight: str) -> nn.LayerNorm:
    """The norm whose output a block's layer reads: norm1 before attn.qkv, norm2 before mlp.fc1."""
    block, kind, _ = layer_name(weight).rsplit(".", 2)
    return cast(nn.LayerNorm, modules[f"{block}.{'norm1' if kind == 'attn' else 'norm2'}"])
