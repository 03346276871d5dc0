"""Which GPUs a plan runs on: what is asked for, what the builder is told, what the manifest says."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from segmenter.errors import EngineError

LATER = "+"
AMPERE = "8.0"
# What TensorRT-RTX builds for unless it is told; from NVIDIA's documentation of it, "CPU-Only AOT and TensorRT-RTX
# Engines", which adds "and later". That is not promised: of what came later 1.7.1 knows 12.1 alone, where no plan was
# tried, and not 9.0 and 10.0.
PORTABLE = (AMPERE, "8.6", "8.9", "12.0")
# the first compute capability with products in a precision; from NVIDIA's support matrix of TensorRT-RTX 1.5
FIRST = {"fp8": "8.9", "bf16": AMPERE, "int8": AMPERE}


def gpu_here() -> tuple[str, str]:
    """(name, compute capability) of the current GPU, such as ("NVIDIA L4", "8.9"); ("", "") where PyTorch sees none."""
    if not torch.cuda.is_available():
        return "", ""
    return torch.cuda.get_device_name(), "{}.{}".format(*torch.cuda.get_device_capability())


def set_targets(trt: Any, config: Any, engine: str, gpus: Sequence[str], precision: str) -> tuple[str, ...]:
    """Tell a builder config for which GPUs to build; returns the manifest's `compute_capabilities`.

    gpus: compute capabilities such as ("8.6", "12.0"), for TensorRT-RTX; ("8.0+",), for TensorRT; () for the default:
    those of `PORTABLE` that have the precision with RTX, the GPU that it is built on with TensorRT.
    Raises EngineError for what the engine does not build for, or that lacks the precision.
    """
    for gpu in gpus:
        if not re.fullmatch(r"\d{1,2}\.\d\+?", gpu):
            raise EngineError(f"--gpus {gpu}: wanted compute capabilities such as 8.6")
    first = FIRST.get(precision, AMPERE)
    below = [gpu for gpu in gpus if _number(gpu) < _number(first)]
    if below:
        what = f"{precision} products" if precision in FIRST else "GPUs that plans run on"
        raise EngineError(f"--gpus {' '.join(below)}: {what} begin with {first}; leave it out")
    if len(set(gpus)) < len(gpus):
        raise EngineError(f"--gpus {' '.join(gpus)}: names one twice")
    if engine == "tensorrt":
        return _tensorrt(trt, config, gpus)
    if not gpus:
        return tuple(gpu for gpu in PORTABLE if _number(gpu) >= _number(first))
    known = {
        f"{digits[:-1]}.{digits[-1]}": member
        for name, member in trt.ComputeCapability.__members__.items()
        if (digits := name.removeprefix("SM")).isdigit()
    }
    unknown = [gpu for gpu in gpus if gpu not in known]
    if unknown:
        raise EngineError(
            f"--gpus {' '.join(unknown)}: {engine} {trt.__version__} builds for {', '.join(known)}; leave it out for"
            f" {', '.join(PORTABLE)}"
        )
    config.num_compute_capabilities = len(gpus)
    for index, gpu in enumerate(gpus):
        config.set_compute_capability(known[gpu], index)
    return tuple(gpus)


def _tensorrt(trt: Any, config: Any, gpus: Sequence[str]) -> tuple[str, ...]:
    if not gpus:
        capability = gpu_here()[1]
        return (capability,) if capability else ()
    if tuple(gpus) != (AMPERE + LATER,):
        raise EngineError(
            f"--gpus {' '.join(gpus)}: engine tensorrt builds for the GPU it runs on, or with {AMPERE + LATER} for all"
            " since Ampere"
        )
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return tuple(gpus)


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.removesuffix(LATER).split(".")))
