"""The machine and what it was measured to do, for `segmenter_bench.acceptance`: PyTorch alone is needed."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from segmenter_bench.ceilings import ceilings
from segmenter_bench.runs import new_run, write_run

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a product at each type and a copy, and write the run."""
    parser = argparse.ArgumentParser(prog="segmenter_bench.machine_step", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    run = new_run("machine", f"python -m segmenter_bench.machine_step --out {options.out}", {"name": name}, {})
    # a CPU multiplies fp16 matrices by way of fp32, and slowly: that is no ceiling of anything
    for kind in TYPES if on_gpu else ("fp32", "bf16"):
        run["rows"].append({"type": kind, "status": "ok", **asdict(ceilings(device, TYPES[kind]))})
    if on_gpu:
        from segmenter_bench.kernel_race import ceilings_of
        from segmenter_kernels import timing

        eight = ceilings_of(torch.float16, device, timing.measure)
        run["rows"] += [
            {"type": kind, "status": "ok", "tflops": tflops, "gb_per_s": eight.gb_per_s}
            for kind, tflops in eight.tflops.items()
            if kind != "float"
        ]
    print(write_run(run, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
