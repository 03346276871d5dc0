"""Times every candidate tile on this GPU and writes the best to `configs/<the GPU's name>.json`.

`python -m segmenter_kernels.tune [--op NAME ...]` needs torch, triton and numpy, and no installation. A tile that does
not compile, does not fit or answers wrong is left out; the others are timed on a few workloads, the best of them on
all, and the one wins whose times, relative to the best of each workload, have the smallest geometric mean. Commit the
file: it goes before that of the architecture. `--dry-run` needs no GPU: it compiles the tiles and lists those that
would be tried in vain.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from segmenter_kernels import checks, gemm, packed, tiles, timing, workers, workloads
from segmenter_kernels.add_layernorm import candidates as add_layernorm_candidates
from segmenter_kernels.attention import candidates as attention_candidates
from segmenter_kernels.judging import Judge
from segmenter_kernels.mask_scores import candidates as mask_scores_candidates
from segmenter_kernels.merge_windows import candidates as merge_candidates
from segmenter_kernels.patch_tiles import candidates as patch_embed_candidates
from segmenter_kernels.quantize import candidates as quantize_candidates
from segmenter_kernels.tiles import Tile
from segmenter_kernels.upsample_argmax import candidates as upsample_candidates
from segmenter_kernels.workers import Workers
from segmenter_kernels.workload import Workload

OPS = tuple(op for op in workloads.OPS if op not in workloads.ONE_TILE)
FINALISTS = 6
ROUGH_WORKLOADS = 3  # decide which tiles are timed on all of a case's workloads
_ROUGH_REPLAYS, _FINAL_REPLAYS = 3, 25
_Timed = tuple[Workload, list[tuple[Any, ...]], Judge]  # with its arguments, as `timing.copies` makes them


def _eight_bit_candidates(architecture: int, workload: Workload) -> Iterator[Tile]:
    # where float8 sums are split is a matter of accuracy, not of time
    split = tiles.of_architecture(workload.key, workload.case, architecture)["SPLIT"]
    yield from ({**tile, "SPLIT": split} for tile in gemm.candidates(architecture, 1))


_CANDIDATES: dict[str, Callable[[int, Workload], Iterable[Tile]]] = {
    "attention": lambda architecture, workload: attention_candidates(
        architecture, workload.dtype, int(workload.case.split("_")[0].split("-")[1])
    ),
    "patch_embed": lambda architecture, workload: patch_embed_candidates(architecture, workload.case),
    "add_layernorm": lambda architecture, workload: add_layernorm_candidates(architecture, workload.case),
    "linear": lambda architecture, workload: gemm.candidates(architecture, workload.dtype.itemsize),
    "mask_scores": lambda architecture, workload: mask_scores_candidates(architecture, workload.case),
    "upsample_argmax": lambda architecture, workload: upsample_candidates(architecture, workload.case),
    "merge_windows": lambda architecture, workload: merge_candidates(architecture, workload.case),
    "quantize": lambda architecture, workload: quantize_candidates(architecture, int(workload.case)),
    "linear_int8": _eight_bit_candidates,
    "linear_fp8": _eight_bit_candidates,
}


def for_tuning(op: str) -> list[Workload]:
    """The workloads that decide an op's tiles: fp16, alone and in batches, attention with every head dimension."""
    dtype, batches = torch.float16, (1, 8)
    found = workloads.of_op(op, dtype, batches)
    if op == "attention":
        # few, short, middling and long sequences, as 64 channels have among Segmenter's
        shapes = [(1, 577), *((8, N) for N in (577, 1025, 1750))]
        found += [workloads.attention(B, N, 768 // D, D, dtype) for B, N in shapes for D in packed.HEAD_DIMS if D != 64]
    return found


def cases(ops: Iterable[str]) -> dict[tuple[str, str], list[Workload]]:
    """Workloads to tune for, by what shares a tile: (op in the tile data, case)."""
    found: dict[tuple[str, str], list[Workload]] = {}
    for op in ops:
        for workload in for_tuning(op):
            found.setdefault((workload.key, workload.case), []).append(workload)
    return found


def by_op(same: Iterable[Workload]) -> dict[str, Workload]:
    """The first workload of each op in a case: other ops compile other kernels from the same tile."""
    found: dict[str, Workload] = {}
    for workload in same:
        found.setdefault(workload.op, workload)
    return found


def ranked(times: Mapping[int, Sequence[float]]) -> list[int]:
    """Candidates from best to worst by their times, one a workload."""
    best = [min(column) for column in zip(*times.values(), strict=True)]
    return sorted(times, key=lambda index: math.prod(ms / least for ms, least in zip(times[index], best, strict=True)))


def write(gpu: str, chosen: Mapping[tuple[str, str], Tile], folder: Path = tiles.FOLDER) -> Path:
    """Put tiles into the file of a GPU, beside those it has for other cases, atomically."""
    file = folder / tiles.file_of(gpu).name
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for (key, case), tile in chosen.items():
        data.setdefault(key, {})[case] = dict(tile)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
    return file


def why_not(workload: Workload, tile: Tile, arguments: tuple[Any, ...], judge: Judge) -> str | None:
    """Why a tile cannot be used for a workload: what launching it raised, or how wrong it was; None when it can."""
    try:
        with torch.inference_mode():
            verdict = judge(workload.launch(*arguments, tile=tile))
    except Exception as error:  # compilers and drivers share no narrower base
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None if verdict.right else f"error {verdict.error:.3g}, budget {verdict.budget:.3g}"


def candidates(workload: Workload, architecture: int, device: torch.device | None = None) -> list[Tile]:
    """Tiles worth timing for a workload, the committed one first: that of a device, else of the architecture."""
    case = (workload.key, workload.case)
    committed = tiles.of_device(*case, device) if device else tiles.of_architecture(*case, architecture)
    return [committed, *(tile for tile in _CANDIDATES[workload.key](architecture, workload) if tile != committed)]


def _compiles(job: tuple[tuple[str, ...], str, str, Tile]) -> tuple[str | None, bool]:
    """In a process of its own: fills Triton's cache, and what crashes there leaves the timing process whole.

    Returns why the tile cannot be used, and whether its process still can: CUDA never recovers from an illegal access.
    """
    ops, key, case, tile = job
    for op in ops:
        workload, arguments, judge = _first(op, key, case)
        if reason := why_not(workload, tile, arguments, judge):
            return reason, workers.unspoiled()
    return None, True


@cache
def _first(op: str, key: str, case: str) -> tuple[Workload, tuple[Any, ...], Judge]:
    """An op's first workload of a case with its arguments; the truth takes longer than a launch, so it is kept."""
    first = cases([op])[key, case][0]
    arguments = first.arguments(torch.device("cuda"))
    return first, arguments, Judge(first, arguments)


def tune(key: str, case: str, same: Sequence[Workload], pool: Workers) -> tuple[Tile, str]:
    """The best tile of a case, and a line about it. Raises RuntimeError when no candidate works."""
    device = torch.device("cuda")
    tried = candidates(same[0], tiles.architecture_of(device), device)
    print(f"{key} {case}: trying {len(tried)} tiles", file=sys.stderr, flush=True)
    reasons = list(pool.map(_compiles, [(tuple(by_op(same)), key, case, tile) for tile in tried]))
    left = [index for index, reason in enumerate(reasons) if reason is None]
    data = [_timed(workload, device) for workload in same]
    times: dict[int, list[float]] = {}
    for judged_by, replays in ((_spread(data), _ROUGH_REPLAYS), (data, _FINAL_REPLAYS)):
        times = {}
        for index in left:
            if any(why_not(workload, tried[index], each[0], judge) for workload, each, judge in judged_by):
                continue
            times[index] = [
                timing.measure(lambda *x, w=workload, t=tried[index]: w.launch(*x, tile=t), each, replays).ms_p50
                for workload, each, _ in judged_by
            ]
        if not times:
            reason = next(filter(None, reasons), "wrong at another shape")
            raise RuntimeError(f"{key} {case}: none of {len(tried)} tiles works: {reason}")
        best = ranked(times)
        # and the committed one, to say what tuning gained
        left = [*best[:FINALISTS], *(index for index in best[FINALISTS:] if index == 0)]
    ms = ", ".join(f"{time:.4f}" for time in times[left[0]])
    line = f"{key} {case}: {ms} ms with {json.dumps(dict(tried[left[0]]))}"
    if 0 in times:
        gains = [old / new for old, new in zip(times[0], times[left[0]], strict=True)]
        line += f", {math.prod(gains) ** (1 / len(gains)):.2f} times as fast as the committed one"
    return tried[left[0]], line


def _timed(workload: Workload, device: torch.device) -> _Timed:
    arguments = workload.arguments(device)
    return workload, timing.copies(arguments, device), Judge(workload, arguments)


def _spread(data: Sequence[_Timed]) -> Sequence[_Timed]:
    """At most `ROUGH_WORKLOADS` of a case's workloads, from all over them."""
    count = min(ROUGH_WORKLOADS, len(data))
    return [data[(2 * index + 1) * len(data) // (2 * count)] for index in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when all is tuned, 1 when a case has no working tile, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="segmenter_kernels.tune", description=__doc__)
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS), metavar="NAME")
    parser.add_argument("--case", nargs="+", metavar="NAME", help="of the cases of these ops only some, such as 16-64")
    parser.add_argument("--out", type=Path, default=tiles.FOLDER, help="folder of the tile data")
    parser.add_argument("--workers", type=int, default=min(workers.MOST, os.cpu_count() or 1))
    parser.add_argument("--dry-run", action="store_true", help="compile what would be tried, on any machine")
    parser.add_argument(
        "--architecture", type=int, choices=tiles.ARCHITECTURES, default=90, help="that a dry run compiles for"
    )
    options = parser.parse_args(argv)
    found = {name: same for name, same in cases(options.op).items() if not options.case or name[1] in options.case}
    if not found:
        parser.error(f"--case {' '.join(options.case)}: no case of {', '.join(options.op)}")
    if options.dry_run:
        from segmenter_kernels.dry_run import dry_run

        if checks.INTERPRETED:
            print("error: TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it", file=sys.stderr)
            return 2
        found = {name: same for name, same in found.items() if workloads.runs_on(same[0].op, options.architecture)}
        return dry_run(found, options.architecture, options.workers)
    if checks.INTERPRETED or not torch.cuda.is_available():
        print("error: tuning times kernels on a CUDA device and there is none here; run it on one", file=sys.stderr)
        return 2
    gpu, status = torch.cuda.get_device_name(), 0
    architecture = tiles.architecture_of(torch.device("cuda"))
    with Workers(options.workers) as pool:
        for (key, case), same in found.items():
            if not workloads.runs_on(same[0].op, architecture):
                continue
            try:
                tile, line = tune(key, case, same, pool)
            except RuntimeError as error:
                print(f"error: {error}", file=sys.stderr)
                status = 1
                continue
            print(line, flush=True)
            # at once: tuning all takes a while, and may be stopped
            write(gpu, {(key, case): tile}, options.out)
    return status


if __name__ == "__main__":
    sys.exit(main())
