"""One compiled form of a kernel, described well enough to compile it without a GPU and to judge the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
}
DEPLOYED = (torch.float16, torch.bfloat16)  # what engines run in; float32 is for checking


@dataclass(frozen=True)
class Specialisation:
    """A kernel with everything fixed that its machine code depends on.

    name: unique among all, such as `attention_fp16_d64`; case: its name in the tile data.
    types: Triton's type of each run-time argument, in the order of the kernel's parameters: `*fp16`, `i32`, `fp32`,
    `tensordesc<fp16[1, 128, 64]>`.
    constants: values of the kernel's constexpr parameters.
    aligned: run-time arguments that are multiples of 16 (pointers: 16-byte aligned).
    maxnreg: registers a thread may have, None for as many as the compiler likes.
    matrix: whether its machine code must use the matrix units; asynchronous: whether it must copy asynchronously.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: frozenset[str]
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    matrix: bool = False
    asynchronous: bool = False
