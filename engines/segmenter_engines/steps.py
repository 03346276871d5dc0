"""The steps that an activation is rounded to in 8 bits: what follows from its range, and what a Q/DQ graph holds."""

from dataclasses import dataclass

import torch
from onnx import TensorProto
from torch import Tensor

from segmenter_engines.formats import INT8, UINT8, Format, held_scale

ONE_SIDED = 0.25  # of an activation's largest value its smallest may be at most, to be taken for one-sided


@dataclass(frozen=True)
class Range:
    """Smallest and largest value a tensor takes, zero included."""

    low: float
    high: float

    def union(self, other: "Range") -> "Range":
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Steps:
    """Numbers of a format around `zero`, `scale` apart, of an activation that `shift` is taken off before."""

    form: Format
    scale: float
    zero: int = 0
    shift: float = 0.0

    def fake(self, x: Tensor) -> Tensor:
        """x as it comes back from 8 bits, float32."""
        return self.form.fake(x - self.shift, self.scale, self.zero) + self.shift


def steps_over(span: Range, form: Format, real: int) -> Steps:
    """The steps that cover a range, as a graph of element type `real` holds them.

    A one-sided activation, as GELU gives them, is shifted before it becomes symmetric int8, which leaves half its
    numbers to what never comes. Around its middle the activation has the steps of uint8 with a zero point, zero is
    still one of them, and the product gets the middle back as a constant a channel. Not in bf16: its 8 bits put zero,
    where most of the activation lies, between two steps, and round the product before it gets its middle back, which
    costs more than the steps gain.
    """
    if form != INT8 or real == TensorProto.BFLOAT16 or -span.low >= ONE_SIDED * span.high:
        scale, zero = form.fitted(span.low, span.high)
        return Steps(form, _held(scale, real), zero)
    scale, zero = UINT8.fitted(span.low, span.high)
    # of whole steps, and rounded as the graph holds it: what is taken off is what the product gets back
    return Steps(form, _held(scale, real), 0, _held(_held(scale, real) * (128 - zero), real))


def _held(value: float, real: int) -> float:
    return float(held_scale(torch.tensor(value), real))
