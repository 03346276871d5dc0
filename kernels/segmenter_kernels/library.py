"""The ops as PyTorch operators, `torch.ops.segmenter.*`, for torch.compile, torch.export and ONNX.

`Segmenter(config, ops=segmenter_kernels.library)` is the same network with operators that a graph keeps whole: the
Triton kernels on CUDA tensors, plain PyTorch on CPU tensors. Outputs are contiguous. `rotate`, `attention`,
`layernorm`, `add_layernorm`, `linear_gelu` and `linear_residual` have gradients; what their backward passes need is
computed again from the inputs rather than kept. `onnx_ops` says which operators stay whole in ONNX.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import segmenter_kernels
from segmenter_kernels import checks, reference

NAMESPACE = "segmenter"


def _operator(
    name: str, schema: str, fake: Callable[..., Any], given: Callable[..., tuple[Any, ...]] = lambda *given: given
) -> Any:
    """given: what the kernels take, from what the operator takes."""
    plain = getattr(reference, name)

    def on_cpu(*arguments: Any) -> Any:
        outputs = plain(*given(*arguments))
        return outputs.contiguous() if isinstance(outputs, Tensor) else tuple(x.contiguous() for x in outputs)

    def on_gpu(*arguments: Any) -> Any:
        return getattr(segmenter_kernels, name)(*given(*arguments))

    operator: Any = torch.library.custom_op(
        f"{NAMESPACE}::{name}", on_cpu, mutates_args=(), device_types="cpu", schema=schema
    )
    operator.register_kernel("cuda")(on_gpu)
    operator.register_fake(fake)
    return operator


def _fake_attention(qkv: Tensor, heads: int) -> Tensor:
    B, N, C3 = qkv.shape
    return qkv.new_empty(B, N, C3 // 3)


def _fake_patch_embed(image: Tensor, weight: Tensor, bias: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    P = weight.shape[-1]
    count = tokens.shape[1] + (image.shape[2] // P) * (image.shape[3] // P)
    return image.new_empty(image.shape[0], count, weight.shape[0])


def _sized(masks: Tensor, size: Sequence[int], crop: Sequence[int] | None) -> tuple[Any, ...]:
    """Where a side is negative, -s, it is s times the grid's."""
    sides = tuple(side if side > 0 else -side * grid for side, grid in zip(size, masks.shape[2:], strict=True))
    return masks, sides, None if crop is None else tuple(crop)


def _fake_upsample_argmax(masks: Tensor, size: Sequence[int], crop: Sequence[int] | None) -> Tensor:
    H, W = _sized(masks, size, crop)[1] if crop is None else crop
    return masks.new_empty(masks.shape[0], H, W, dtype=reference.label_dtype(masks))


_rotate = _operator(
    "rotate",
    "(Tensor qkv, Tensor cos, Tensor sin, int heads) -> Tensor",
    lambda qkv, cos, sin, heads: qkv.new_empty(qkv.shape),
)
_attention = _operator("attention", "(Tensor qkv, int heads) -> Tensor", _fake_attention)
_attention_backward = _operator(
    "attention_backward",
    "(Tensor grad, Tensor qkv, int heads) -> Tensor",
    lambda grad, qkv, heads: qkv.new_empty(qkv.shape),
)
_patch_embed = _operator(
    "patch_embed",
    "(Tensor image, Tensor weight, Tensor bias, Tensor position, Tensor tokens) -> Tensor",
    _fake_patch_embed,
)
_layernorm = _operator(
    "layernorm",
    "(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor",
    lambda x, weight, bias, eps: x.new_empty(x.shape),
)
_add_layernorm = _operator(
    "add_layernorm",
    "(Tensor x, Tensor r, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    lambda x, r, weight, bias, eps: (x.new_empty(x.shape), x.new_empty(x.shape)),
)
_linear_gelu = _operator(
    "linear_gelu",
    "(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]),
)
_linear_residual = _operator(
    "linear_residual",
    "(Tensor x, Tensor weight, Tensor bias, Tensor residual) -> Tensor",
    lambda x, weight, bias, residual: residual.new_empty(residual.shape),
)
_mask_scores = _operator(
    "mask_scores",
    "(Tensor patches, Tensor classes, Tensor weight, Tensor bias, float eps) -> Tensor",
    lambda patches, classes, weight, bias, eps: patches.new_empty(*patches.shape[:2], classes.shape[1]),
)
_upsample_argmax = _operator(
    "upsample_argmax", "(Tensor masks, SymInt[] size, SymInt[]? crop) -> Tensor", _fake_upsample_argmax, _sized
)


def _linear_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias of a linear layer."""
    rows = grad.reshape(-1, grad.shape[-1])
    return grad @ weight, rows.mT @ x.reshape(-1, x.shape[-1]), rows.sum(dim=0)


def _keep_rotate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.heads = inputs
    ctx.save_for_backward(cos, sin)


def _gradient_of_rotate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    return _rotate(grad.contiguous(), cos, -sin, ctx.heads), None, None, None


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, ctx.heads = inputs
    ctx.save_for_backward(qkv)


def _gradient_of_attention(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (qkv,) = ctx.saved_tensors
    return _attention_backward(grad.contiguous(), qkv, ctx.heads), None


def _keep_layernorm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gradient_of_layernorm(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_layernorm_gradients(ctx, grad), None


def _layernorm_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what is normalised, weight and bias, which were kept in this order."""
    z, weight, bias = ctx.saved_tensors
    row = z.shape[-1:]
    _, mean, inverse = torch.ops.aten.native_layer_norm(z, row, weight, bias, ctx.eps)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), z, row, mean, inverse, weight, bias, [True, True, True]
    )
    return gradients


def _keep_add_layernorm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(output[0], weight, bias)


def _gradient_of_add_layernorm(ctx: Any, grad_z: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    grad, grad_weight, grad_bias = _layernorm_gradients(ctx, grad_y)
    grad = grad + grad_z
    # two outputs of a backward pass must not be one tensor
    return grad, grad.clone(), grad_weight, grad_bias, None


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _gradient_of_linear_gelu(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    x, weight, bias = ctx.saved_tensors
    return _linear_gradients(torch.ops.aten.gelu_backward(grad, F.linear(x, weight, bias)), x, weight)


def _gradient_of_linear_residual(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    x, weight, _ = ctx.saved_tensors
    return (*_linear_gradients(grad, x, weight), grad)


_rotate.register_autograd(_gradient_of_rotate, setup_context=_keep_rotate)
_attention.register_autograd(_gradient_of_attention, setup_context=_keep_attention)
_layernorm.register_autograd(_gradient_of_layernorm, setup_context=_keep_layernorm)
_add_layernorm.register_autograd(_gradient_of_add_layernorm, setup_context=_keep_add_layernorm)
_linear_gelu.register_autograd(_gradient_of_linear_gelu, setup_context=_keep_linear)
_linear_residual.register_autograd(_gradient_of_linear_residual, setup_context=_keep_linear)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Queries and keys of [B, N, 3C] turned by the angles of their tokens, with a gradient of qkv.

    Raises ValueError where one of cos or sin is needed.
    """
    checks.inference_only("rotate", cos=cos, sin=sin)
    return _rotate(qkv, cos, sin, heads)


def attention(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """Multi-head self-attention on packed projections, [B, N, 3C] to [B, N, C], with gradients.

    Raises ValueError for dropout above 0, which no kernel here has.
    """
    checks.require(dropout == 0.0, "attention", f"dropout {dropout}: kernels have none; use segmenter.ops to train so")
    return _attention(qkv, heads)


def patch_embed(image: Tensor, weight: Tensor, bias: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    """Image [B, 3, H, W] to tokens [B, E + h w, C]. Raises ValueError where a gradient is needed."""
    checks.inference_only("patch_embed", image=image, weight=weight, bias=bias, position=position, tokens=tokens)
    return _patch_embed(image, weight, bias, position, tokens)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`LayerNorm(x)`, [..., C], with gradients."""
    return _layernorm(x, weight, bias, eps)


def add_layernorm(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(x + r, LayerNorm(x + r))`, both [B, N, C], with gradients."""
    total, normed = _add_layernorm(x, r, weight, bias, eps)
    return total, normed


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x weight^T + bias)`, exact, with gradients."""
    return _linear_gelu(x, weight, bias)


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`residual + x weight^T + bias`, with gradients."""
    return _linear_residual(x, weight, bias, residual)


def mask_scores(patches: Tensor, classes: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over classes of cosines, [B, N, K]. Raises ValueError where a gradient is needed."""
    checks.inference_only("mask_scores", patches=patches, classes=classes, weight=weight, bias=bias)
    return _mask_scores(patches, classes, weight, bias, eps)


def upsample_argmax(masks: Tensor, size: tuple[int, int], crop: tuple[int, int] | None = None) -> Tensor:
    """Class masks [B, K, h, w] to labels [B, H, W] or [B, H', W']: uint8, or int16 when K > 256.

    size: (H, W); a negative -s stands for s times the grid's side, so that a graph between sizes has a constant.
    Raises ValueError where a gradient is needed.
    """
    checks.inference_only("upsample_argmax", masks=masks)
    return _upsample_argmax(masks, size, crop)
