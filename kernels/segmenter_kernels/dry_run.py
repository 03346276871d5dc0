"""The tiles that tuning would try, compiled without a GPU: how many there are, and which would be tried in vain.

`python -m segmenter_kernels.tune --dry-run`: so that the minutes of a GPU go into tiles that it can run.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.compiler import ASTSource

from segmenter_kernels import pretended, tune
from segmenter_kernels.compiling import Compiled, compile_source, past_limits
from segmenter_kernels.specialisation import Specialisation
from segmenter_kernels.tiles import Tile
from segmenter_kernels.workers import Workers
from segmenter_kernels.workload import Workload

Job = tuple[str, str, str, Tile, int]  # op, op in the tile data, case, tile, architecture


def refused(job: Job) -> tuple[list[str], bool]:
    """Why a tile would be tried in vain, nothing when it would not; a process that compiles can always go on."""
    op, key, case, tile, architecture = job
    return compiled_in_vain(tune.cases([op])[key, case][0], tile, architecture), True


def compiled_in_vain(workload: Workload, tile: Tile, architecture: int) -> list[str]:
    """What is wrong with the code that a launch with a tile would run on an architecture."""
    made: list[Compiled] = []

    def compiled(source: ASTSource, target: Any, options: Mapping[str, Any], **_: Any) -> None:
        form = Specialisation(source.name, None, {}, {}, frozenset(), options["num_warps"], options["num_stages"])
        made.append(compile_source(source, options, form, architecture))

    def empty(*shape: int, scale: float = 1.0) -> Tensor:
        return pretended.empty(*shape, dtype=workload.dtype)

    with pretended.gpu(architecture, compiled), torch.inference_mode():
        workload.launch(*workload.draw(empty), tile=tile)
    assert made
    return list(dict.fromkeys(fault for kernel in made for fault in past_limits(kernel)))


def dry_run(found: Mapping[tuple[str, str], Sequence[Workload]], architecture: int, workers: int) -> int:
    """Print what tuning would try for some cases; 1 when one of them has nothing to try, else 0.

    A tile is compiled for each op that takes it, and refused where one of them refuses it.
    """
    total: Counter[str] = Counter()
    empty = []
    with Workers(workers) as pool:
        for (key, case), same in found.items():
            tried = tune.candidates(same[0], architecture)
            ops = list(tune.by_op(same))
            jobs = [(op, key, case, tile, architecture) for tile in tried for op in ops]
            reasons: list[list[str]] = [[] for _ in tried]
            for at, answer in enumerate(pool.map(refused, jobs)):
                told = [answer] if isinstance(answer, str) else answer
                reasons[at // len(ops)] += [reason for reason in told if reason not in reasons[at // len(ops)]]
            left = reasons.count([])
            total.update(tiles=len(tried), left=left)
            if not left:
                empty.append(f"{key} {case}")
            print(f"{key} {case}: {len(tried)} tiles, {left} worth a GPU's time", flush=True)
            for tile, reason in zip(tried, reasons, strict=True):
                if reason:
                    print(f"  not {json.dumps(dict(tile))}: {'; '.join(reason)}", flush=True)
    print(f"sm_{architecture}: {total['tiles']} tiles of {len(found)} cases, {total['left']} worth a GPU's time")
    if empty:
        print(f"nothing to try: {', '.join(empty)}")
    return int(bool(empty))
