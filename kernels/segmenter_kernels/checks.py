"""What every launcher asks of its arguments before anything is launched; each failure is a ValueError in one line."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret  # fixed once the kernels are decorated
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def require(condition: bool, op: str, message: str) -> None:
    """Raises ValueError `op: message` unless the condition holds."""
    if not condition:
        raise ValueError(f"{op}: {message}")


def tensor(op: str, **given: Any) -> None:
    """Raises ValueError unless all are tensors."""
    for name, x in given.items():
        if not isinstance(x, Tensor):  # every launch asks, so no message is made for those that are
            raise ValueError(f"{op}: {name} is of type {type(x).__name__}: want a tensor")


def rows(op: str, x: Tensor, most: int) -> int:
    """How many channels the rows of x [..., C] have. Raises ValueError unless 1 to `most`."""
    tensor(op, x=x)
    channels = x.shape[-1] if x.dim() else 0
    require(0 < channels <= most, op, f"x {list(x.shape)}: want rows of 1 to {most} channels")
    return channels


def whole(*given: Any) -> bool:
    """Whether none is a float: 2.0 heads would divide a width, and fail at the launch."""
    return not any(isinstance(each, float) for each in given)


def sides(op: str, name: str, given: Any) -> tuple[int, int]:
    """Height and width of a size. Raises ValueError unless it is a pair of whole numbers."""
    fits = isinstance(given, tuple | list) and len(given) == 2 and whole(*given)
    require(fits, op, f"{name} {given}: want (height, width) in whole pixels")
    return given[0], given[1]


def epsilon(op: str, given: Any) -> None:
    """Raises ValueError unless it is a finite float, 0 or above; for an integer Triton would compile another form."""
    fits = isinstance(given, float) and math.isfinite(given) and given >= 0
    require(fits, op, f"eps {given!r}: want a finite float, 0 or above")


def colours(op: str, mean: Any, std: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of three colours. Raises ValueError unless pixels can be normalised by them."""
    fits = all(hasattr(each, "__len__") and len(each) == 3 and all(map(math.isfinite, each)) for each in (mean, std))
    message = f"mean {mean}, std {std}: uint8 images need 3 finite numbers each, every std above 0"
    require(fits and min(std) > 0, op, message)
    return mean, std


def shape(op: str, name: str, x: Tensor, wanted: Sequence[int]) -> None:
    """Raises ValueError unless x has the wanted shape; -1 takes any length."""
    tensor(op, **{name: x})
    fits = x.dim() == len(wanted) and all(b in (-1, a) for a, b in zip(x.shape, wanted, strict=True))
    require(fits, op, f"{name} {list(x.shape)}: want {['any' if n < 0 else n for n in wanted]}")


def same_dtype(op: str, allowed: Sequence[torch.dtype], **tensors: Tensor) -> torch.dtype:
    """The dtype all tensors share. Raises ValueError when one differs or the dtype is not allowed."""
    tensor(op, **tensors)
    (first, x), *others = tensors.items()
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
    require(x.dtype in allowed, op, f"{first} is {x.dtype}; this op takes {names}: convert it with .to()")
    for name, other in others:
        require(other.dtype == x.dtype, op, f"{name} is {other.dtype} and {first} {x.dtype}; give both one dtype")
    return x.dtype


def on_gpu(op: str, **tensors: Tensor) -> None:
    """Raises ValueError unless all tensors are on the current GPU (or on the CPU, under Triton's interpreter)."""
    (first, x), *others = tensors.items()
    wanted = "cpu" if INTERPRETED else "cuda"
    require(
        x.device.type == wanted,
        op,
        f"{first} is on {x.device}; Triton kernels need a {wanted} tensor: move it there, or use segmenter.ops",
    )
    for name, other in others:
        require(other.device == x.device, op, f"{name} is on {other.device} and {first} on {x.device}; move one")
    if wanted == "cuda":
        current = torch.cuda.current_device()  # where Triton launches, wherever the tensors are
        here = x.device.index
        message = f"{first} is on {x.device} and the current GPU is {current}; use `with torch.cuda.device({here}):`"
        require(here == current, op, message)


def contiguous(op: str, **tensors: Tensor) -> None:
    """Raises ValueError unless all tensors are contiguous: a hidden copy would cost more than the kernel saves."""
    for name, x in tensors.items():
        require(x.is_contiguous(), op, f"{name} has strides {list(x.stride())}; call .contiguous() first")


def inference_only(op: str, **tensors: Tensor) -> None:
    """Raises ValueError when a gradient of any of the tensors would be needed."""
    for name, x in tensors.items():
        require(
            not needs_gradient(x),
            op,
            f"{name} needs a gradient and this kernel has none; use torch.inference_mode(), or segmenter.ops to train",
        )


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd is recording and would want a gradient of any of the tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
