"""What the CPU offers for 8 and 16 bit products, and where int8 would go wrong on it without a word."""

import platform
from collections.abc import Sequence
from pathlib import Path

# instructions that decide how fast, and how exact, 8 and 16 bit products are
TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
)
# 8 bit products summed in 32 bits
EXACT_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})


def cpu_info() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_flags() -> list[str]:
    """Those of `TELLING_FLAGS` this CPU has; empty where the system does not say."""
    lines = cpu_info()
    flags = set(lines.get("flags", lines.get("Features", "")).split())
    return [flag for flag in TELLING_FLAGS if flag in flags]


def int8_saturates(flags: Sequence[str], architecture: str | None = None) -> bool:
    """Whether products of uint8 activations with int8 weights are summed in pairs of 16 bits, which can overflow.

    x86 before VNNI has only VPMADDUBSW for them: 2 * 255 * 127 does not fit. flags: as `cpu_flags` gives them; False
    when there are none, for nothing is known then.
    """
    x86 = (architecture or platform.machine()).lower() in ("x86_64", "amd64", "i686")
    return x86 and "avx2" in flags and not any(flag in flags for flag in EXACT_INT8)
