"""How kernels are judged: against float64, with twice the eager op's own error at that dtype as the budget."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from segmenter_kernels import judging, tiles
from tests.kernels.conftest import COMPILED, DEVICE, EMULATED

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# one of each kind, as far as the GPU runs it: plain pointers, tensor descriptors
ARCHITECTURES = tuple(
    each for each in (80, 90) if not COMPILED or each <= (EMULATED or tiles.architecture_of(torch.device(DEVICE)))
)


def inputs(*shapes: Sequence[int], dtype: torch.dtype, mean: float = 1.0, seed: int = 0) -> list[Tensor]:
    """Normal tensors of mean 1: a masked lane that leaks changes their sums."""
    random = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=random) + mean).to(dtype).to(DEVICE) for shape in shapes]


@contextmanager
def poisoned() -> Iterator[None]:
    """Every tensor allocated inside starts as NaN (integers as 0x5a), so that an element never written is seen."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like", "empty_strided"):
            patch.setattr(torch, name, _poison(getattr(torch, name)))
        for name in ("new_empty",):
            patch.setattr(Tensor, name, _poison(getattr(Tensor, name)))
        yield


def _poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocated(*arguments: Any, **named: Any) -> Tensor:
        x = allocate(*arguments, **named)
        if x.dtype.itemsize == 1 and x.dtype.is_floating_point:
            return x.view(torch.uint8).fill_(0x7F).view(x.dtype)
        return x.fill_(float("nan") if x.dtype.is_floating_point else 0x5A)

    return allocated


def budget(eager: Tensor, truth: Tensor, eps: float = 0.0) -> float:
    """Largest error a kernel may have where eager's answer is that far from the truth."""
    return judging.budget(float((eager.double() - truth).abs().max()), truth, eager.dtype, eps=eps)


def judge(
    kernel: Callable[..., Any], eager: Callable[..., Any], tensors: Sequence[Tensor], *rest: Any, eps: float = 0.0
) -> None:
    """Run both on the same tensors, and eager in float64 as the truth; fail past the budget, on NaN, or on a dtype.

    eps: see `segmenter_kernels.judging.budget`.
    """
    with poisoned():
        got = _outputs(kernel(*tensors, *rest))
    eager_outputs = _outputs(eager(*tensors, *rest))
    truths = _outputs(eager(*(x.double() for x in tensors), *rest))
    assert len(got) == len(truths)
    for index, (ours, theirs, truth) in enumerate(zip(got, eager_outputs, truths, strict=True)):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        _within_budget(f"output {index}", ours, theirs, truth, eps)


def judge_gradients(
    kernel: Callable[..., Any], eager: Callable[..., Any], tensors: Sequence[Tensor], *rest: Any
) -> None:
    """As `judge`, for the gradients of all tensors under one random output gradient."""

    def gradients(op: Callable[..., Any], at: Sequence[Tensor]) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in at]
        outputs = _outputs(op(*leaves, *rest))
        random = torch.Generator().manual_seed(1)
        directions = [(torch.randn(y.shape, generator=random) + 1).to(DEVICE) for y in outputs]
        # rounded once for all, so that every op answers the same question
        grads = [d.to(tensors[0].dtype).to(y.dtype) for d, y in zip(directions, outputs, strict=True)]
        return list(torch.autograd.grad(outputs, leaves, grads))

    with poisoned():
        got = gradients(kernel, tensors)
    eager_gradients, truths = gradients(eager, tensors), gradients(eager, [x.double() for x in tensors])
    for index, (ours, theirs, truth) in enumerate(zip(got, eager_gradients, truths, strict=True)):
        _within_budget(f"gradient {index}", ours, theirs, truth)


def _within_budget(name: str, ours: Tensor, theirs: Tensor, truth: Tensor, eps: float = 0.0) -> None:
    errors, allowed = (ours.double() - truth).abs(), budget(theirs, truth, eps)
    worst = [int(axis) for axis in torch.unravel_index(errors.argmax(), errors.shape)]
    told = f"error {errors.max():.3g} at {worst} of {list(errors.shape)}, budget {allowed:.3g}"
    assert errors.max() <= allowed, f"{name}: {told}"


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
