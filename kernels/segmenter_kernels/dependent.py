"""Programmatic dependent launch, on sm_90 and later: a kernel is set up while the one before it drains.

A kernel launched so may run before its predecessor is done, so the first thing it does is to wait for that one, memory
included. As every such kernel waits, all that came earlier is done then too. Then it lets its successor be set up.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from segmenter_kernels import tiles
from segmenter_kernels.checks import INTERPRETED

FIRST_ARCHITECTURE = 90
NOT_EARLY = {"EARLY": False}  # as C++ launches the compiled forms, one after the other


@triton.jit
def begin(EARLY: tl.constexpr):
    """What a kernel calls before it reads or writes memory."""
    if EARLY:
        gdc_wait()
        # those that wait hold registers and shared memory, and all programs of this kernel have theirs by then
        gdc_launch_dependents()


def options(device: torch.device) -> dict[str, Any]:
    """Arguments of a launch on a device: the kernel's EARLY, and Triton's own option where it is true."""
    if INTERPRETED or tiles.architecture_of(device) < FIRST_ARCHITECTURE:
        return NOT_EARLY
    return {"EARLY": True, "launch_pdl": True}
