"""What a compiled kernel is launched with: one entry for each parameter of its machine code, in order.

The one description of a launch: `compiling.faults` holds every cubin against it, the manifest carries it, and launchers
without Python (csrc/launch) fill parameters by these names. Triton passes a tensor descriptor in 1 + 2 n parameters
and puts two pointers of its own at the end, to memory for what a program spills and for its profiler.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from segmenter_kernels import tiles

BYTES = {"pointer": 8, "i32": 4, "i64": 8, "fp32": 4, "map": 128, "shape": 4, "stride": 8, "scratch": 8}


@dataclass(frozen=True)
class Parameter:
    """Kind, and the name of the kernel's argument it comes from.

    kind: pointer, i32, i64 or fp32, as they are; of a descriptor its map (CUtensorMap), then `shape` (32 bits) and
    `stride` (64 bits) along each axis; scratch, a pointer of Triton's own.
    """

    name: str
    kind: str
    axis: int = 0

    @property
    def bytes(self) -> int:
        return BYTES[self.kind]


def parameters(types: Mapping[str, str], architecture: int) -> list[Parameter]:
    """Of the run-time arguments of a specialisation (`types`).

    Raises ValueError for a type that has no entry here, and for descriptors on an architecture that has none.
    """
    found = []
    for name, kind in types.items():
        if kind.startswith("*"):
            found.append(Parameter(name, "pointer"))
        elif kind in ("i32", "i64", "fp32"):
            found.append(Parameter(name, kind))
        elif (box := re.fullmatch(r"tensordesc<\w+\[([\d, ]+)\]>", kind)) and tiles.has_descriptors(architecture):
            axes = range(box[1].count(",") + 1)
            found.append(Parameter(name, "map"))
            found += [Parameter(name, "shape", axis) for axis in axes]
            found += [Parameter(name, "stride", axis) for axis in axes]
        else:
            raise ValueError(f"parameter {name} of type {kind} on sm_{architecture}: no launcher knows how to pass it")
    return [*found, Parameter("global_scratch", "scratch"), Parameter("profile_scratch", "scratch")]
