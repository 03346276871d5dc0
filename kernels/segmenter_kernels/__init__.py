"""Triton kernels with the names and signatures of `segmenter.ops`: `Segmenter(config, ops=segmenter_kernels)`."""

from segmenter_kernels.add_layernorm import add_layernorm, layernorm
from segmenter_kernels.attention import attention, attention_backward
from segmenter_kernels.layernorm_quantize import layernorm_quantize
from segmenter_kernels.linear import linear, linear_gelu, linear_residual
from segmenter_kernels.mask_scores import mask_scores
from segmenter_kernels.merge_windows import merge_windows
from segmenter_kernels.normalize import normalize
from segmenter_kernels.patch_embed import patch_embed
from segmenter_kernels.quantize import quantize
from segmenter_kernels.quantized_linear import linear_fp8, linear_int8
from segmenter_kernels.resize import resize
from segmenter_kernels.rotate import rotate
from segmenter_kernels.upsample_argmax import upsample_argmax

__all__ = [
    "add_layernorm",
    "attention",
    "attention_backward",
    "layernorm",
    "layernorm_quantize",
    "linear",
    "linear_fp8",
    "linear_gelu",
    "linear_int8",
    "linear_residual",
    "mask_scores",
    "merge_windows",
    "normalize",
    "patch_embed",
    "quantize",
    "resize",
    "rotate",
    "upsample_argmax",
]
