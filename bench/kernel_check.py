"""Every kernel of the fp16, int8 and fp8 networks judged on this GPU against float64, at Segmenter's shapes and in
every type, for `segmenter_bench.acceptance`: no package but PyTorch, Triton and NumPy is needed.

Nothing is timed, so all cores compile and judge at once, in processes of their own: a kernel that crashes or hangs is
one row. What they compile stays in Triton's cache for those that are timed later. Outputs are NaN before a launch, so
that an element never written is seen, and the first and the last image of a batch are judged.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from segmenter_bench.kernel_race import error_of
from segmenter_bench.runs import command_of, new_run, write_run

BATCHES = {"fp16": (1, 8), "bf16": (2,), "fp32": (2,)}
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
Job = tuple[str, str, int]  # op, type, and which of its workloads
FAILED: dict[str, Any] = {"status": "failed", "error": None, "budget": None}


def jobs(ops: Sequence[str], architecture: int) -> list[Job]:
    """What an architecture can run, fp16 first."""
    from segmenter_kernels import workloads

    return [
        (op, kind, index)
        for kind in TYPES
        for op in ops
        if workloads.runs_on(op, architecture)
        for index in range(len(_workloads(op, kind)))
    ]


def _workloads(op: str, kind: str) -> list[Any]:
    from segmenter_kernels import workloads

    return workloads.of_op(op, TYPES[kind], BATCHES[kind])


def judged(workload: Any, device: torch.device) -> dict[str, Any]:
    """Status, reason, error and budget of a workload's launch, the worst of its first and last image."""
    from segmenter_kernels.judging import judge

    arguments = workload.arguments(device)
    with torch.inference_mode():
        # under this, PyTorch fills with NaN what it allocates
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            answer = workload.launch(*arguments)
        finally:
            torch.use_deterministic_algorithms(False)
        images = sorted({0, workload.batch - 1})
        verdicts = [judge(workload, answer, arguments, image=image) for image in images]
    worst = max(verdicts, key=lambda one: one.share)
    reason = None if worst.right else f"error {worst.error:.3g}, budget {worst.budget:.3g}"
    return {"status": "ok" if worst.right else "wrong", "reason": reason, **asdict(worst)}


def check(job: Job) -> tuple[dict[str, Any], bool]:
    """In a process of its own: what `judged` says, and whether the process can go on."""
    from segmenter_kernels import workers

    op, kind, index = job
    # float32 is judged as float32, by convolutions too
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return judged(_workloads(op, kind)[index], torch.device("cuda")), True
    except Exception as error:  # compilers and drivers share no narrower base
        return FAILED | {"reason": error_of(error)}, workers.unspoiled()
    finally:
        # the truths of many processes do not fit into the GPU's memory at once
        if workers.unspoiled():
            torch.cuda.empty_cache()


def measured(ops: Sequence[str], count: int, command: str, keep: Any = lambda run: None) -> dict[str, Any]:
    """The run, see `segmenter_bench.runs`. Needs a GPU. keep: called with the run so far after each workload."""
    from segmenter_kernels import tiles
    from segmenter_kernels.workers import Workers

    todo = jobs(ops, tiles.architecture_of(torch.device("cuda")))
    run = new_run("checks", command, {"name": torch.cuda.get_device_name()}, {"truth": "float64", "asked": len(todo)})
    if not todo:  # this GPU lacks what all of them need
        return run
    with Workers(min(count, len(todo))) as pool:
        for (op, kind, index), answer in zip(todo, pool.map(check, todo), strict=True):
            found = FAILED | {"reason": answer} if isinstance(answer, str) else answer
            row = {"op": op, "shape": _workloads(op, kind)[index].shape, "dtype": kind, "provider": "triton"} | found
            run["rows"].append(row)
            print(f"{op} {row['shape']} {kind}: {row['reason'] or 'right'}", file=sys.stderr, flush=True)
            keep(run)
    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, write the run, and give 1 when a kernel is wrong or fails."""
    from segmenter_kernels import workers, workloads

    parser = argparse.ArgumentParser(prog="segmenter_bench.kernel_check", description=__doc__)
    parser.add_argument("--op", nargs="+", default=list(workloads.OPS), choices=workloads.OPS, metavar="NAME")
    parser.add_argument("--workers", type=int, default=min(workers.MOST, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: wanted at least 1")
    command = command_of("python -m segmenter_bench.kernel_check", argv)
    run = measured(options.op, options.workers, command, lambda run: write_run(run, options.out))
    print(write_run(run, options.out))
    wrong = [row for row in run["rows"] if row["status"] != "ok"]
    if wrong:
        print(f"{len(wrong)} of {len(run['rows'])} wrong, the first: {wrong[0]['op']}: {wrong[0]['reason']}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
