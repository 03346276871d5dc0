"""Whether an answer to a workload is right: judged image by image, against float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter_kernels import reference
from segmenter_kernels.workload import Workload


@dataclass(frozen=True)
class Verdict:
    """How far an answer is from float64, and how far it may be."""

    error: float
    budget: float

    @property
    def right(self) -> bool:
        return self.error <= self.budget  # false for NaN

    @property
    def share(self) -> float:
        """How much of the budget the error takes; infinite for a wrong answer."""
        if not self.right:
            return float("inf")
        return self.error / self.budget if self.budget else 0.0


# The matrix units of Hopper keep 13 bits of what they add to a sum of float8 products, and cut the rest off. An H100
# was off by 2^-11.4 of the largest value with sums of 128 products of one sign. As `segmenter_bench` imitates it, sums
# of K products of either sign, up to 1,024, are off by 2^-15.4 to 2^-14.7 times the root of K: this is twice that and
# more. Other GPUs and the interpreter are allowed it too.
_SUMS_EPS = 2.0**-13.5


def budget(own: float, truth: Tensor, dtype: torch.dtype, op: str = "", eps: float = 0.0) -> float:
    """Largest error allowed: twice the plain op's own at that dtype, and at least one ulp of the largest value.

    A plain op whose answer is no number allows no more than that ulp. eps: taken for an ulp's share of the value where
    it is more than the type's.
    """
    # sums in another order round a value between two integers to the other one
    step = 1.0 if op == "layernorm_quantize" and truth.dtype == torch.int8 else 0.0
    # colours are rounded after each of two passes, by half a colour at most, as Pillow does
    step = 1.0 if op == "resize" else step
    peak = float(truth.abs().max())
    ulp = peak * max(torch.finfo(dtype).eps, eps)
    # nor does a truth that is none, by which everything would be right
    return max(0.0 if math.isnan(own) else 2 * own, ulp if math.isfinite(ulp) else 0.0, step)


class Judge:
    """Judges answers to one image of a workload by their `budget`; what is right is computed once.

    Labels are judged by what the logit of each lacks to the largest one there. plain: what was computed, where that is
    not the op.
    """

    def __init__(
        self,
        workload: Workload,
        arguments: tuple[Any, ...],
        plain: Callable[..., Any] | None = None,
        image: int = 0,
    ) -> None:
        plain, self._op = plain or workload.plain, workload.op
        self._labels = workload.op in ("upsample_argmax", "merge_windows")
        if workload.op == "merge_windows":  # of one picture
            self._at = slice(None)
            truths: tuple[Tensor, ...] = (reference.merged_logits(arguments[0].double(), *arguments[1:])[None],)
            own = plain(*arguments)[None]
        else:
            self._at = slice(image, image + 1)
            one = tuple(x[self._at] if isinstance(x, Tensor) and _batched(x, arguments) else x for x in arguments)
            wide: tuple[Any, ...] = tuple(x.double() if isinstance(x, Tensor) and _a_number(x) else x for x in one)
            if workload.op == "upsample_argmax":
                truths = (F.interpolate(wide[0], size=wide[1], mode="bilinear", align_corners=False),)
            else:
                truths = _tuple(plain(*wide))
            own = plain(*one)
        eps = _SUMS_EPS * math.sqrt(arguments[0].shape[-1]) if workload.op == "linear_fp8" else 0.0
        self._truths = [
            (truth, budget(self._error(theirs, truth), truth, workload.dtype, workload.op, eps))
            for theirs, truth in zip(_tuple(own), truths, strict=True)
        ]

    def __call__(self, answer: Any) -> Verdict:
        """The worst of an answer's outputs."""
        answers = (answer[None],) if self._op == "merge_windows" else _tuple(answer)
        verdicts = [
            Verdict(self._error(ours[self._at], truth), allowed)
            for ours, (truth, allowed) in zip(answers, self._truths, strict=True)
        ]
        return max(verdicts, key=lambda verdict: verdict.share)

    def _error(self, answer: Tensor, truth: Tensor) -> float:
        return _lacking(truth, answer) if self._labels else float((answer.double() - truth).abs().max())


def judge(
    workload: Workload,
    answer: Any,
    arguments: tuple[Any, ...],
    plain: Callable[..., Any] | None = None,
    image: int = 0,
) -> Verdict:
    """What a `Judge` says of one answer."""
    return Judge(workload, arguments, plain, image)(answer)


def _a_number(x: Tensor) -> bool:
    """Whether its values are exact as float64; those of 8 bits that a scale belongs to are left as they are."""
    return x.is_floating_point() or x.dtype == torch.uint8


def _batched(x: Tensor, arguments: tuple[Any, ...]) -> bool:
    return x.dim() >= 2 and x.shape[0] == arguments[0].shape[0]


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _lacking(logits: Tensor, labels: Tensor) -> float:
    chosen = logits[..., : labels.shape[1], : labels.shape[2]].gather(1, labels[:, None].long())
    return float((logits.amax(dim=1, keepdim=True)[..., : labels.shape[1], : labels.shape[2]] - chosen).max())
