"""Every kernel engines launch, compiled for every architecture without a GPU: fatbins, and a manifest to launch them.

`python -m segmenter_kernels.aot --out FOLDER` writes `NAME.fatbin` (compressed machine code of one specialisation for
each architecture, and PTX for newer ones) and `manifest.json`, prints what each kernel costs, and fails past the
budget.
"""

import argparse
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton

from segmenter_kernels import compiling, tiles
from segmenter_kernels.compiling import JUDGED_WITH, PTX_FALLBACK, Compiled, faults
from segmenter_kernels.parameters import parameters

FORMAT = 2
TOLD_EVERY = 10.0  # seconds, at least, from one line of progress to the next
AT_ONCE = 8  # kernels compiled, then disassembled together


def names(architecture: int) -> list[str]:
    """The specialisations of an architecture."""
    return [each.name for each in compiling.specialisations(architecture)]


def jobs_of(architectures: Sequence[int], only: str = "") -> list[tuple[int, str]]:
    """Architecture and name of every specialisation whose name contains `only`, in a fixed order."""
    return [(each, name) for each in architectures for name in names(each) if only in name]


def _compile_named(jobs: Sequence[tuple[int, str]]) -> list[Compiled]:
    found = {(sm, each.name): each for sm in {sm for sm, _ in jobs} for each in compiling.specialisations(sm)}
    return compiling.compile_kernels([(found[job], job[0]) for job in jobs])


def compile_all(
    architectures: Sequence[int] = tiles.ARCHITECTURES, only: str = "", workers: int | None = None
) -> Iterator[Compiled]:
    """Compile every specialisation whose name contains `only`, in processes of their own, in a fixed order.

    Raises RuntimeError when Triton interprets kernels in this process.
    """
    jobs = jobs_of(architectures, only)
    count = workers or min(len(jobs), os.cpu_count() or 1) or 1
    size = max(1, min(AT_ONCE, len(jobs) // (4 * count)))  # small enough for all processes to end together
    parts = [jobs[at : at + size] for at in range(0, len(jobs), size)]
    if count == 1:
        yield from itertools.chain.from_iterable(map(_compile_named, parts))
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from itertools.chain.from_iterable(pool.map(_compile_named, parts))


def told(kernels: Iterable[Compiled], total: int) -> Iterator[Compiled]:
    """The kernels as they come, and on stderr now and then, and then in the end too, how many of `total` there are."""
    last, waiting = time.monotonic(), False
    for count, kernel in enumerate(kernels, 1):
        if (now := time.monotonic()) - last >= TOLD_EVERY or (waiting and count == total):
            print(f"{count} of {total} kernels compiled", file=sys.stderr, flush=True)
            last, waiting = now, True
        yield kernel


def entry(kernel: Compiled) -> dict[str, Any]:
    """What the manifest says of one kernel on one architecture."""
    wanted = kernel.specialisation
    return {
        "name": kernel.name,
        "architecture": kernel.architecture,
        "target": kernel.target,
        "symbol": kernel.symbol,
        "sha256": kernel.sha256,
        "threads": kernel.threads,
        "registers": kernel.registers,
        "shared_bytes": kernel.shared_bytes,
        "dynamic_shared_bytes": kernel.dynamic_shared_bytes,
        "scratch_bytes": kernel.scratch_bytes,
        "scratch_alignment": kernel.scratch_alignment,
        "parameter_bytes": list(kernel.parameter_bytes),
        "parameters": dict(wanted.types),
        "launch": [asdict(each) | {"bytes": each.bytes} for each in parameters(wanted.types, kernel.architecture)],
        "constants": dict(wanted.constants),
        "aligned": sorted(wanted.aligned),
        "descriptors": list(kernel.descriptors),
        "num_warps": wanted.num_warps,
        "num_stages": wanted.num_stages,
    }


def made_ready(folder: Path) -> str:
    """The program that packs fatbins into a folder, which is made where it is new.

    Raises FileNotFoundError naming the fix without the program `fatbinary`, FileExistsError when the folder has files.
    """
    program = fatbinary()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: a file; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder}: not empty; name a new folder, or remove it first")
    return program


def write(kernels: Sequence[Compiled], folder: Path) -> None:
    """Fill an empty or new folder with one fatbin a specialisation and their manifest. Raises as `made_ready`."""
    program = made_ready(folder)
    for name in dict.fromkeys(kernel.name for kernel in kernels):
        _pack([kernel for kernel in kernels if kernel.name == name], folder / f"{name}.fatbin", program)
    manifest = {
        "format": FORMAT,
        "triton": triton.__version__,
        "ptx_fallback": PTX_FALLBACK,
        "kernels": [entry(kernel) for kernel in kernels],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _pack(kernels: Sequence[Compiled], file: Path, program: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        images = []
        for kernel in kernels:
            sm = kernel.target.removeprefix("sm_")
            code = Path(scratch) / f"{sm}.cubin"
            code.write_bytes(kernel.cubin)
            images.append(f"--image3=kind=elf,sm={sm},file={code.name}")
            if kernel.architecture == PTX_FALLBACK:
                text = Path(scratch) / f"{sm}.ptx"
                text.write_text(kernel.ptx, encoding="utf-8")
                images.append(f"--image3=kind=ptx,sm={sm},file={text.name}")
        command = [program, "--64", "--compress-all", f"--create={file.resolve()}", *images]
        subprocess.run(command, check=True, cwd=scratch, capture_output=True)


def fatbinary() -> str:
    """Path of NVIDIA's packer: on PATH, or from the wheel `nvidia-cuda-nvcc`. Raises FileNotFoundError without one."""
    if found := shutil.which("fatbinary"):
        return found
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        for candidate in sorted(Path(place).glob("cu*/bin/fatbinary")):
            return str(candidate)
    raise FileNotFoundError(
        "no program 'fatbinary' found; pip install nvidia-cuda-nvcc, or put the CUDA toolkit on PATH"
    )


def table(kernels: Sequence[Compiled]) -> str:
    """One line a kernel: name, architecture, threads, registers, shared memory, size, and what is wrong with it."""
    width = max((len(kernel.name) for kernel in kernels), default=4)
    lines = [f"{'kernel':{width}}   sm  threads  registers  shared KB  cubin KB  verdict"]
    for kernel in kernels:
        lines.append(
            f"{kernel.name:{width}}  {kernel.architecture:3}  {kernel.threads:7}  {kernel.registers:9}"
            f"  {kernel.shared_bytes / 1024:9.1f}  {len(kernel.cubin) / 1024:8.1f}  {'; '.join(faults(kernel)) or 'ok'}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when every kernel is within its budget, 1 when one is not, 2 when nothing could be compiled."""
    parser = argparse.ArgumentParser(prog="segmenter_kernels.aot", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to fill with fatbins and a manifest; only judge without it")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="compile the specialisations whose name contains one of these"
    )
    parser.add_argument(
        "--architectures", type=int, nargs="+", choices=tiles.ARCHITECTURES, default=list(tiles.ARCHITECTURES)
    )
    parser.add_argument("--workers", type=int, help="processes to compile in; as many as there are cores by default")
    options = parser.parse_args(argv)
    if options.workers is not None and options.workers < 1:
        print(f"error: --workers {options.workers}: wanted at least 1", file=sys.stderr)
        return 2
    try:
        total = sum(len(jobs_of(options.architectures, only)) for only in options.only)
        if not total:
            raise FileNotFoundError(f"no specialisation's name contains '{', '.join(options.only)}'")
        if options.out:
            made_ready(options.out)  # what stands in the way of writing is told before minutes of compiling
        parts = (compile_all(options.architectures, only, options.workers) for only in options.only)
        made = told((kernel for part in parts for kernel in part), total)
        kernels = list({(kernel.name, kernel.architecture): kernel for kernel in made}.values())
        if options.out:
            write(kernels, options.out)
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(kernels))
    if not triton.__version__.startswith(f"{JUDGED_WITH}."):
        print(f"note: the budget is held with Triton {JUDGED_WITH}; this is {triton.__version__}", file=sys.stderr)
    return 1 if any(faults(kernel) for kernel in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
