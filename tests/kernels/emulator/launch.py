"""Launches on tensors of the CPU, compiled for an architecture and run by thread blocks of the emulator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
from triton.backends import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from segmenter_kernels import checks, pretended, tiles
from tests.kernels.emulator import dispatch
from tests.kernels.emulator.block import Block, Launch
from tests.kernels.emulator.memory import FaultError, Global
from tests.kernels.emulator.ptx import Kernel, parse
from tests.kernels.emulator.tensor_maps import TensorMap

_FIRST_MAP = 1 << 20  # addresses of tensor maps, below those of any array


@contextmanager
def emulated(architecture: int) -> Iterator[None]:
    """Within it ops take tensors of the CPU. For a process of its own, with Triton's interpreter off.

    Raises FaultError where a kernel does what it must not, and NotKnownError where it does what the emulator cannot.
    """
    compile_kernel = triton.compiler.compile
    kept: dict[str, _Compiled] = {}

    def compiled(source: Any, target: Any = None, options: Any = None, **_: Any) -> _Compiled:
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True
            made = compile_kernel(source, target=target, options=options)
        if made.hash not in kept:
            kept[made.hash] = _Compiled(source, made)
        return kept[made.hash]

    with pretended.gpu(architecture, compiled, multiprocessors=3):  # persistent programs have several tiles
        compile_and_return = JITFunction.run

        def run(self: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> Any:
            kernel = compile_and_return(self, *arguments, grid=grid, warmup=warmup, **named)
            names = self.signature.parameters
            bound = self.signature.bind(*arguments, **{name: each for name, each in named.items() if name in names})
            bound.apply_defaults()
            kernel.run(dict(bound.arguments), (*grid, 1, 1)[:3])
            return kernel

        with patch.object(JITFunction, "run", run), patch.object(checks, "on_gpu", _on_cpu):
            yield


def _on_cpu(op: str, **tensors: torch.Tensor) -> None:
    for name, x in tensors.items():
        checks.require(x.device.type == "cpu", op, f"{name} is on {x.device}; the emulator needs a cpu tensor")


class _Compiled:
    def __init__(self, source: Any, made: Any) -> None:
        self._source, self._metadata = source, made.metadata
        most = tiles.SHARED_MEMORY_BYTES[made.metadata.target.arch]
        if made.metadata.shared > most:
            raise FaultError(f"{made.metadata.shared} bytes of shared memory: this GPU has {most}")
        self._parsed: Kernel = parse(made.asm["ptx"])
        self._steps, self._granule = dispatch.steps(self._parsed), dispatch.granule(self._parsed)

    def run(self, arguments: dict[str, Any], grid: tuple[int, int, int]) -> None:
        tensors: dict[str, torch.Tensor] = {}
        maps: dict[int, TensorMap] = {}
        values: list[int] = []
        boxes = iter(getattr(self._metadata, "tensordesc_meta", None) or ())
        for name, kind in self._source.signature.items():
            given = arguments[name]
            if kind == "constexpr":
                continue
            if isinstance(given, TensorDescriptor):
                tensors[name] = given.base
                if not tiles.has_descriptors(self._metadata.target.arch):
                    values += [_bits(each) for each in driver.decompose_descriptor(given)]  # Triton 3.7 and later
                    continue
                box = next(boxes)
                at = _FIRST_MAP + len(maps)
                maps[at] = TensorMap(given.base, given.shape, given.strides, box["block_size"], box["swizzle"])
                values += [at, *given.shape, *given.strides]
                continue
            if isinstance(given, torch.Tensor):
                tensors[name] = given
            values.append(_bits(given))
        values += [0] * (len(self._parsed.parameters) - len(values))  # pointers of Triton's own
        launch = Launch(
            self._parsed,
            self._steps,
            dict(zip(self._parsed.parameters, values, strict=True)),
            maps,
            Global(tensors),
            self._metadata.shared,
            self._granule,
            grid,
        )
        with np.errstate(all="ignore"):
            for z, y, x in np.ndindex(grid[::-1]):
                Block(launch, (x, y, z)).run()


def _bits(given: Any) -> int:
    """An argument as a parameter of machine code."""
    if isinstance(given, torch.Tensor):
        return given.data_ptr()
    return int(np.float32(given).view(np.uint32)) if isinstance(given, float) else int(given)
