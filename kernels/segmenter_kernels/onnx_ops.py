"""The ops in ONNX: four nodes of domain `segmenter`, version 1, for runtimes with kernels; standard nodes for the rest.

    SegmenterAttention       qkv [B, N, 3C] -> [B, N, C]
        heads                int; the rows of qkv are packed (3, heads, D), scores are scaled by D^-0.5
    SegmenterPatchEmbed      image [B, 3, H, W], weight [C, 3, P, P], bias [C], position [1, E + h w, C],
                             tokens [1, E, C] -> [B, E + h w, C]
    SegmenterMaskScores      patches [B, N, C], classes [B, K, C], weight [K], bias [K] -> [B, N, K]
        epsilon              float; of the LayerNorm over K
    SegmenterUpsampleArgmax  masks [B, h, w, K] -> labels [B, H', W'], int32
        size                 ints (H, W); what h x w is upsampled to; a negative -s stands for s times the grid's side
        crop                 ints (H', W'), always there; the top-left part that is kept; -1 keeps all

All tensors of a node but labels share one type: float32, float16 or bfloat16; all are dense, last axis fastest. Masks
come with the classes last, as SegmenterMaskScores writes them, so that nothing is transposed in between. Labels are
int32, as TensorRT has uint8 for inputs and outputs of a graph alone, and a Cast to uint8 (int16) follows. What each
node computes is what the function of `segmenter_kernels.reference` of the same name does. layernorm becomes
LayerNormalization; add_layernorm Add and LayerNormalization; linear_gelu MatMul, Add and Gelu; linear_residual MatMul
and two Adds; rotate Slices, Muls and Concats.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset20 as standard
from onnxscript.values import Op, Opset

from segmenter_kernels import library

DOMAIN, VERSION = library.NAMESPACE, 1
_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_LABELS = ["tensor(int32)"]
_DOMAIN = Opset(DOMAIN, VERSION)


def _node(name: str, inputs: Sequence[str], output: str, **attributes: onnx.defs.OpSchema.AttrType) -> Op:
    schema, labels = onnx.defs.OpSchema, output == "labels"
    parameters = [schema.FormalParameter(parameter, "T") for parameter in inputs]
    constraints = [("T", _FLOATS, "element type"), *([("L", _LABELS, "label type")] if labels else [])]
    return Op(
        _DOMAIN,
        name,
        schema(
            name,
            DOMAIN,
            VERSION,
            inputs=parameters,
            outputs=[schema.FormalParameter(output, "L" if labels else "T")],
            type_constraints=constraints,
            attributes=[schema.Attribute(attribute, kind, "") for attribute, kind in attributes.items()],
        ),
    )


_Type = onnx.defs.OpSchema.AttrType
ATTENTION = _node("SegmenterAttention", ["qkv"], "mixed", heads=_Type.INT)
PATCH_EMBED = _node("SegmenterPatchEmbed", ["image", "weight", "bias", "position", "tokens"], "embedded")
MASK_SCORES = _node("SegmenterMaskScores", ["patches", "classes", "weight", "bias"], "scores", epsilon=_Type.FLOAT)
UPSAMPLE_ARGMAX = _node("SegmenterUpsampleArgmax", ["masks"], "labels", size=_Type.INTS, crop=_Type.INTS)


def _rotate(qkv: Any, cos: Any, sin: Any, heads: int) -> Any:
    D = qkv.shape[2] // (3 * heads)
    x = standard.Reshape(qkv, _ints(0, 0, 3 * heads, D))
    one, other = (_part(_part(x, 2, 0, 2 * heads), 3, at, at + D // 2) for at in (0, D // 2))
    cos, sin = (standard.Unsqueeze(each, _ints(1)) for each in (cos, sin))
    first = standard.Sub(standard.Mul(one, cos), standard.Mul(other, sin))
    second = standard.Add(standard.Mul(other, cos), standard.Mul(one, sin))
    turned = standard.Concat(first, second, axis=-1)
    whole = standard.Concat(turned, _part(x, 2, 2 * heads, 3 * heads), axis=2)
    return standard.Reshape(whole, _ints(0, 0, 3 * heads * D))


def _part(x: Any, axis: int, start: int, end: int) -> Any:
    return standard.Slice(x, _ints(start), _ints(end), _ints(axis))


def _ints(*values: int) -> Any:
    return standard.Constant(value_ints=values)


def _attention(qkv: Any, heads: int) -> Any:
    return ATTENTION(qkv, heads=heads)


def _patch_embed(image: Any, weight: Any, bias: Any, position: Any, tokens: Any) -> Any:
    return PATCH_EMBED(image, weight, bias, position, tokens)


def _layernorm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    normed, _, _ = standard.LayerNormalization(x, weight, bias, axis=-1, epsilon=eps)
    return normed


def _add_layernorm(x: Any, r: Any, weight: Any, bias: Any, eps: float) -> Any:
    total = standard.Add(x, r)
    return total, _layernorm(total, weight, bias, eps)


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    return standard.Add(standard.MatMul(x, standard.Transpose(weight, perm=[1, 0])), bias)


def _linear_gelu(x: Any, weight: Any, bias: Any) -> Any:
    return standard.Gelu(_linear(x, weight, bias))


def _linear_residual(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    return standard.Add(residual, _linear(x, weight, bias))


def _mask_scores(patches: Any, classes: Any, weight: Any, bias: Any, eps: float) -> Any:
    return MASK_SCORES(patches, classes, weight, bias, epsilon=eps)


def _upsample_argmax(masks: Any, size: Sequence[int], crop: Sequence[int] | None = None) -> Any:
    whole = [-1 if side < 0 else side for side in size]
    labels = UPSAMPLE_ARGMAX(_classes_last(masks), size=size, crop=crop or whole)
    return standard.Cast(labels, to=onnx.TensorProto.UINT8 if masks.shape[1] <= 256 else onnx.TensorProto.INT16)


def _classes_last(masks: Any) -> Any:
    """[B, K, h, w] to [B, h, w, K]; nothing to do but to go back where masks are the transposed view of such."""
    maker = masks.producer()
    if maker is not None and maker.op_type == "Transpose" and tuple(maker.attributes.get_ints("perm")) == (0, 3, 1, 2):
        return maker.inputs[0]
    return standard.Transpose(masks, perm=[0, 2, 3, 1])


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """`custom_translation_table` of `torch.onnx.export(..., dynamo=True)` for graphs of `segmenter_kernels.library`."""
    ops = torch.ops.segmenter
    return {
        ops.rotate.default: _rotate,
        ops.attention.default: _attention,
        ops.patch_embed.default: _patch_embed,
        ops.layernorm.default: _layernorm,
        ops.add_layernorm.default: _add_layernorm,
        ops.linear_gelu.default: _linear_gelu,
        ops.linear_residual.default: _linear_residual,
        ops.mask_scores.default: _mask_scores,
        ops.upsample_argmax.default: _upsample_argmax,
    }
