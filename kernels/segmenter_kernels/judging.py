"""Whether an answer to a workload is right: judged image by image, against float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter_kernels import reference
from segmenter_kernels.workloads import Workload


@dataclass(frozen=True)
class Verdict:
    """How far an answer is from float64, and how far it may be."""

    error: float
    budget: float

    @property
    def right(self) -> bool:
        return self.error <= self.budget  # false for NaN


# the matrix units of Hopper keep 13 bits of what they add to a sum of float8 products, whatever type it is stored in
# (measured on an H100: 2^-11.4 of the largest value)
_LEAST_EPS = {"linear_fp8": torch.finfo(torch.float16).eps}


def budget(own: float, truth: Tensor, dtype: torch.dtype, op: str = "") -> float:
    """Largest error allowed: twice the plain op's own at that dtype, and at least one ulp of the largest value."""
    return max(2 * own, float(truth.abs().max()) * max(torch.finfo(dtype).eps, _LEAST_EPS.get(op, 0.0)))


def judge(
    workload: Workload,
    answer: Any,
    arguments: tuple[Any, ...],
    plain: Callable[..., Any] | None = None,
    image: int = 0,
) -> Verdict:
    """Judge one image of an answer by its `budget`.

    Labels are judged by what the logit of each lacks to the largest one there. plain: what was computed, where that is
    not the op.
    """
    plain = plain or workload.plain
    if workload.op == "merge_windows":  # of one picture
        truth = reference.merged_logits(arguments[0].double(), *arguments[1:])[None]
        error, own = (_lacking(truth, labels[None]) for labels in (answer, plain(*arguments)))
        return Verdict(error, budget(own, truth, workload.dtype))
    at = slice(image, image + 1)
    one = tuple(x[at] if isinstance(x, Tensor) and _batched(x, arguments) else x for x in arguments)
    wide: tuple[Any, ...] = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in one)
    if workload.op == "upsample_argmax":
        truth = F.interpolate(wide[0], size=wide[1], mode="bilinear", align_corners=False)
        error, own = (_lacking(truth, labels) for labels in (answer[at], plain(*one)))
        return Verdict(error, budget(own, truth, workload.dtype))
    verdicts = []
    for ours, theirs, truth in zip(*map(_tuple, (answer, plain(*one), plain(*wide))), strict=True):
        error, own = (float((x.double() - truth).abs().max()) for x in (ours[at], theirs))
        verdicts.append(Verdict(error, budget(own, truth, workload.dtype, workload.op)))
    return max(verdicts, key=lambda verdict: verdict.error / verdict.budget if verdict.right else float("inf"))


def _batched(x: Tensor, arguments: tuple[Any, ...]) -> bool:
    return x.dim() >= 2 and x.shape[0] == arguments[0].shape[0]


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _lacking(logits: Tensor, labels: Tensor) -> float:
    chosen = logits[..., : labels.shape[1], : labels.shape[2]].gather(1, labels[:, None].long())
    return float((logits.amax(dim=1, keepdim=True)[..., : labels.shape[1], : labels.shape[2]] - chosen).max())
