"""Times every candidate tile on this GPU and writes the best to `configs/<the GPU's name>.json`.

`python -m segmenter_kernels.tune [--op NAME ...]` needs torch, triton and numpy, and no installation. A tile that does
not compile, does not fit or answers wrong is left out; of the others the one wins whose times, relative to the best of
each workload, have the smallest geometric mean. Commit the file: it goes before that of the architecture.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch

from segmenter_kernels import checks, gemm, packed, tiles, timing, workloads
from segmenter_kernels.add_layernorm import candidates as add_layernorm_candidates
from segmenter_kernels.attention import candidates as attention_candidates
from segmenter_kernels.judging import judge
from segmenter_kernels.mask_scores import candidates as mask_scores_candidates
from segmenter_kernels.merge_windows import candidates as merge_candidates
from segmenter_kernels.patch_embed import candidates as patch_embed_candidates
from segmenter_kernels.quantize import candidates as quantize_candidates
from segmenter_kernels.tiles import Tile
from segmenter_kernels.upsample_argmax import candidates as upsample_candidates
from segmenter_kernels.workloads import Workload

FINALISTS = 6
MOST_WORKERS = 16
_ROUGH_REPLAYS, _FINAL_REPLAYS = 3, 25


def _eight_bit_candidates(architecture: int, workload: Workload) -> Iterator[Tile]:
    # where float8 sums are split is a matter of accuracy, not of time
    split = tiles.of_architecture(workload.key, workload.case, architecture)["SPLIT"]
    yield from ({**tile, "SPLIT": split} for tile in gemm.candidates(architecture, 1))


_CANDIDATES: dict[str, Callable[[int, Workload], Iterable[Tile]]] = {
    "attention": lambda architecture, workload: attention_candidates(
        architecture, workload.dtype, int(workload.case.split("-")[1])
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
        found += [
            workloads.attention(B, 1025, 768 // D, D, dtype) for B in batches for D in packed.HEAD_DIMS if D != 64
        ]
    return found


def cases(ops: Iterable[str]) -> dict[tuple[str, str], list[Workload]]:
    """Workloads to tune for, by what shares a tile: (op in the tile data, case)."""
    found: dict[tuple[str, str], list[Workload]] = {}
    for op in ops:
        for workload in for_tuning(op):
            found.setdefault((workload.key, workload.case), []).append(workload)
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


def why_not(workload: Workload, tile: Tile, arguments: tuple[Any, ...]) -> str | None:
    """Why a tile cannot be used for a workload: what launching it raised, or how wrong it was; None when it can."""
    try:
        with torch.inference_mode():
            verdict = judge(workload, workload.launch(*arguments, tile=tile), arguments)
    except Exception as error:  # compilers and drivers share no narrower base
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None if verdict.right else f"error {verdict.error:.3g}, budget {verdict.budget:.3g}"


def candidates(workload: Workload, architecture: int) -> list[Tile]:
    """Tiles worth timing for a workload."""
    return list(_CANDIDATES[workload.key](architecture, workload))


def _compiles(job: tuple[str, str, int]) -> tuple[str | None, bool]:
    """In a process of its own: fills Triton's cache, and what crashes there leaves the timing process whole.

    Returns why the tile cannot be used, and whether its process still can: CUDA never recovers from an illegal access.
    """
    key, case, index = job
    same = cases(workloads.OPS)[key, case]
    device = torch.device("cuda")
    reason = why_not(same[0], candidates(same[0], tiles.architecture_of(device))[index], same[0].arguments(device))
    if reason is not None:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return reason, False
    return reason, True


class Workers:
    """Processes that try one tile each at a time; one that a bad tile kills or spoils is replaced, for it alone."""

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._free: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for _ in range(count):
            self._free.put(_process())

    def map(self, function: Callable[[Any], tuple[str | None, bool]], jobs: Iterable[Any]) -> list[str | None]:
        """What `function` says of each job, in order; it also says whether its process can go on."""
        return list(self._threads.map(partial(self._try, function), jobs))

    def _try(self, function: Callable[[Any], tuple[str | None, bool]], job: Any) -> str | None:
        process, usable = self._free.get(), True
        try:
            reason, usable = process.submit(function, job).result()
        except BrokenProcessPool:
            reason, usable = "its process died", False
        finally:
            if not usable:
                process.shutdown(wait=False)
                process = _process()
            self._free.put(process)
        return reason

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._free.empty():
            self._free.get().shutdown()


def _process() -> ProcessPoolExecutor:
    # spawned: a forked process cannot use CUDA; it starts with its first job
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def tune(key: str, case: str, same: Sequence[Workload], workers: Workers) -> tuple[Tile, str]:
    """The best tile of a case, and a line about it. Raises RuntimeError when no candidate works."""
    device = torch.device("cuda")
    tried = candidates(same[0], tiles.architecture_of(device))
    reasons = workers.map(_compiles, [(key, case, index) for index in range(len(tried))])
    left = [index for index, reason in enumerate(reasons) if reason is None]
    data = [timing.copies(workload.arguments(device), device) for workload in same]
    times: dict[int, list[float]] = {}
    for replays in (_ROUGH_REPLAYS, _FINAL_REPLAYS):
        times = {}
        for index in left:
            if any(why_not(workload, tried[index], each[0]) for workload, each in zip(same, data, strict=True)):
                continue
            times[index] = [
                timing.measure(lambda *x, w=workload, t=tried[index]: w.launch(*x, tile=t), each, replays).ms_p50
                for workload, each in zip(same, data, strict=True)
            ]
        if not times:
            reason = next(filter(None, reasons), "wrong at another shape")
            raise RuntimeError(f"{key} {case}: none of {len(tried)} tiles works: {reason}")
        left = ranked(times)[:FINALISTS]
    ms = ", ".join(f"{time:.4f}" for time in times[left[0]])
    return tried[left[0]], f"{key} {case}: {ms} ms with {json.dumps(dict(tried[left[0]]))}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when all is tuned, 1 when a case has no working tile, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="segmenter_kernels.tune", description=__doc__)
    parser.add_argument("--op", nargs="+", choices=workloads.OPS, default=list(workloads.OPS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=tiles.FOLDER, help="folder of the tile data")
    parser.add_argument("--workers", type=int, default=min(MOST_WORKERS, os.cpu_count() or 1))
    options = parser.parse_args(argv)
    if checks.INTERPRETED or not torch.cuda.is_available():
        print("error: tuning times kernels on a CUDA device and there is none here; run it on one", file=sys.stderr)
        return 2
    gpu, status = torch.cuda.get_device_name(), 0
    architecture = tiles.architecture_of(torch.device("cuda"))
    runnable = [op for op in options.op if workloads.runs_on(op, architecture)]
    with Workers(options.workers) as workers:
        for (key, case), same in cases(runnable).items():
            try:
                tile, line = tune(key, case, same, workers)
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
