"""The numbers quantised graphs hold: which 8-bit value stands for a float, and the tensors of an ONNX that carry them.

q = round(x / scale) + zero, saturated, as QuantizeLinear has it: to nearest even. The arithmetic is PyTorch's, which
has every type; `segmenter_kernels.quantize` rounds the same way.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

Precision = Literal["int8", "fp8"]
Target = Literal["cpu", "tensorrt"]

TORCH: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}
# of the values that a graph of each precision leaves in floating point
REAL = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_SMALLEST = 1e-8  # of ranges: a tensor of zeros needs a scale too


@dataclass(frozen=True)
class Format:
    """An 8-bit number format. low, high: the numbers it saturates at; `one_sided` formats have a zero point."""

    element: int  # ONNX type
    low: float
    high: float

    @property
    def one_sided(self) -> bool:
        return self.low == 0.0

    @property
    def half(self) -> float:
        """Half of what lies between its two largest numbers: so far beyond an end a value is rounded, not clipped."""
        return 16.0 if self.element == TensorProto.FLOAT8E4M3FN else 0.5

    def fitted(self, low: float, high: float) -> tuple[float, int]:
        """Scale and zero point that cover [low, high], which holds 0."""
        if self.one_sided:
            scale = max(high - low, _SMALLEST) / (self.high - self.low)
            return scale, int(min(max(round(-low / scale), self.low), self.high))
        return max(-low, high, _SMALLEST) / self.high, 0

    def encode(self, x: Tensor, scale: Tensor | float, zero: int = 0) -> Tensor:
        """The numbers that stand for float32 x, as float32: divide, round, shift, saturate."""
        y = x / scale
        if self.element == TensorProto.FLOAT8E4M3FN:
            return y.clamp(self.low, self.high).to(torch.float8_e4m3fn).float()
        return (y.round() + zero).clamp(self.low, self.high)

    def fake(self, x: Tensor, scale: Tensor | float, zero: int = 0) -> Tensor:
        """x as it comes back from 8 bits, float32."""
        return (self.encode(x, scale, zero) - zero) * scale


UINT8 = Format(TensorProto.UINT8, 0.0, 255.0)
# what QuantizeLinear saturates at is -128, while a fitted scale uses 127 either way
INT8 = Format(TensorProto.INT8, -128.0, 127.0)
FP8 = Format(TensorProto.FLOAT8E4M3FN, -448.0, 448.0)
FORMATS = {form.element: form for form in (UINT8, INT8, FP8)}


def activation_format(precision: Precision, target: Target) -> Format:
    """uint8 with a zero point for CPUs; TensorRT takes symmetric numbers only."""
    if precision == "fp8":
        return FP8
    return UINT8 if target == "cpu" else INT8


def weight_format(precision: Precision) -> Format:
    return FP8 if precision == "fp8" else INT8


def held_scale(scale: Tensor, real: int) -> Tensor:
    """A scale, float32, as a graph of element type `real` holds it.

    One below the type's smallest normal number would divide by nearly nothing, and is raised to that.
    """
    smallest = 6.2e-5 if real == TensorProto.FLOAT16 else 1e-30
    return scale.float().clamp(min=smallest).to(TORCH[real]).float()


def tensor_of(name: str, values: Tensor, element: int) -> onnx.TensorProto:
    """An ONNX tensor of that element type; numpy has no name for some of them, so it is made of bytes."""
    data = values.to(TORCH[element]).contiguous()
    tensor = TensorProto(name=name, data_type=element, dims=list(data.shape))
    tensor.raw_data = data.reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor


def values_of(tensor: onnx.TensorProto) -> Tensor:
    """Values of a floating-point or 8-bit ONNX tensor, float32."""
    dtype = TORCH.get(tensor.data_type)
    if dtype is None or not tensor.HasField("raw_data"):
        return torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32))
    data = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.uint8) if tensor.raw_data else torch.empty(0)
    return data.view(dtype).reshape(tuple(tensor.dims)).float()
