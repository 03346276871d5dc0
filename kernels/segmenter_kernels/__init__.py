"""Triton kernels with the names and signatures of `segmenter.ops`: `Segmenter(config, ops=segmenter_kernels)`."""

from segmenter_kernels.add_layernorm import add_layernorm

__all__ = ["add_layernorm"]
