"""Which tile sizes a kernel uses on which GPU: data in `configs/`, chosen by architecture or by the GPU's own name.

`configs/sm_90.json` holds what any GPU of that architecture runs well; a file named after a GPU (`NVIDIA_H200.json`),
written by `python -m segmenter_kernels.tune` on that GPU, goes before it. Each maps an op to cases, and a case to the
kernel's tile sizes, `num_warps` and `num_stages`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
import triton

from segmenter_kernels.checks import INTERPRETED, require

Tile = Mapping[str, int]
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
HOPPER = 90
FOLDER = Path(__file__).parent / "configs"
FLAGS = ("DESCRIPTORS", "PARTIAL", "PERSISTENT", "SMALL")  # 0 or 1
COUNTS = ("GROUP", "GROUP_M", "num_stages")  # any from 1 on; other sizes are powers of two
MOST_REGISTERS = "maxnreg"  # a tile may be without, or say 0
# opt-in shared memory of one program, bytes (CUDA C++ Programming Guide, table of compute capabilities)
SHARED_MEMORY_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}


def has_descriptors(architecture: int) -> bool:
    """Whether tensor descriptors are copied by hardware (TMA); on older GPUs Triton makes plain loads of them."""
    return architecture >= 90


def fenced(architecture: int) -> bool:
    """Whether Triton keeps Hopper's rule that its tensor cores read what a copy brought only after a fence.

    Before 3.7.1 it leaves the fence out where tiles are copied by pointers, as in `mask_scores` and `patch_embed`
    (triton-lang/triton#9610; seen in 3.6 and 3.7.0 by tests/kernels/emulator), and in linear layers if a caller gives a
    tile without descriptors. Their rows that begin anywhere pass registers, and that is fenced (seen in 3.6).
    """
    version = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:3])
    return architecture != HOPPER or version >= (3, 7, 1)


def architecture_of(device: torch.device) -> int:
    """The newest known architecture a device can run: 89 for an L4, 90 for an H200. The interpreter counts as 80.

    Raises ValueError for a GPU older than any known.
    """
    if INTERPRETED:
        return ARCHITECTURES[0]
    major, minor = torch.cuda.get_device_capability(device)
    known = [architecture for architecture in ARCHITECTURES if architecture <= major * 10 + minor]
    if not known:
        raise ValueError(f"GPU of compute capability {major}.{minor}: these kernels need 8.0 (Ampere) or newer")
    return known[-1]


def file_of(gpu: str) -> Path:
    """Where the tuned tiles of a GPU are kept, from the name its driver gives it."""
    return FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '_', gpu).strip('_')}.json"


@cache
def _read(file: Path) -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def of_architecture(op: str, case: str, architecture: int) -> Tile:
    """The tile of a case on an architecture. Raises KeyError when the data lack it (a fault of ours)."""
    return _read(FOLDER / f"sm_{architecture}.json")[op][case]


def of_device(op: str, case: str, device: torch.device) -> Tile:
    """The tile of a case on a device: tuned on that very GPU, where it was by this version, else its architecture's."""
    architecture = architecture_of(device)
    if device.type == "cuda":
        return _of_gpu(file_of(torch.cuda.get_device_name(device)), op, case, architecture)
    return of_architecture(op, case, architecture)


@cache
def _of_gpu(tuned_file: Path, op: str, case: str, architecture: int) -> Tile:
    committed, tuned = of_architecture(op, case, architecture), _read(tuned_file).get(op, {}).get(case)
    # one that another version tuned may have other names than the kernel takes now
    return tuned if tuned is not None and _names(tuned) == _names(committed) else committed


def chosen(op: str, given: Tile | None, committed: Tile, flags: Sequence[str] = FLAGS) -> Tile:
    """The tile a caller gave, or the committed one.

    Raises ValueError where what was given has other names, or values that are no sizes.
    """
    if given is None:
        return committed
    require(isinstance(given, Mapping), op, f"tile of type {type(given).__name__}: want a dictionary of sizes")
    names = _names(committed)
    require(_names(given) == names, op, f"tile {dict(given)}: want {', '.join(sorted(names))}")
    for name, size in given.items():
        whole = type(size) is int
        if name in flags:
            require(whole and size in (0, 1), op, f"tile {name} {size!r}: want 0 or 1")
        elif name == MOST_REGISTERS:
            require(whole and size >= 0, op, f"tile {name} {size!r}: want a whole number, 0 for any")
        elif name in COUNTS:
            require(whole and size > 0, op, f"tile {name} {size!r}: want a whole number, 1 or above")
        else:
            require(whole and size > 0 and size.bit_count() == 1, op, f"tile {name} {size!r}: want a power of two")
    return given


def _names(tile: Tile) -> set[str]:
    return set(tile) - {MOST_REGISTERS}
