"""The C++ program and the compiled Python module against the Python session, on the same ONNX in the same runtime.

Each measures in turns: the program in a process of its own, through `segmenter_trt_cli --time`. All label the same
picture, and their labels are compared before anything is timed.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

import segmenter_trt
from segmenter.cli import run
from segmenter.cores import usable_cores
from segmenter.datasets.fitted import fit
from segmenter.errors import ConfigError, EngineError
from segmenter.files import require_writable
from segmenter.images import read_image
from segmenter.option import require_least
from segmenter_bench.placement import Distances, Placement, counted, gauge
from segmenter_bench.runs import wide_console, write_record
from segmenter_bench.timing import burst, take_turns
from segmenter_engines.sessions import Session, open_engine
from segmenter_trt.runtimes import folder

PYTHON, MODULE, PROGRAM = "python session", "segmenter_trt module", "segmenter_trt_cli"
WANTED = f"pass {PROGRAM} as `cmake --install` leaves it in bin/"
TIMED = "uint8 RGB pixels [H, W, 3] in host memory to labels [H, W] in host memory, one image a call"


@dataclass(frozen=True)
class Options:
    """Images per second of the C++ program, the compiled module and the Python session on one exported ONNX."""

    engine: Path
    """Exported .onnx with its manifest."""
    program: Path
    """segmenter_trt_cli, as `cmake --install` leaves it in bin/."""
    picture: Path | None = None
    """JPEG or PNG to label, resized to the engine's size; smooth noise when left out."""
    rounds: int = 9
    """Turns of each."""
    calls: int = 100
    """Timed calls in a turn."""
    threads: int | None = None
    """CPU threads; every core this process may use when left out."""
    json: Path | None = None
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        require_least(self, rounds=1, calls=1, threads=1)


def picture_for(options: Options, size: tuple[int, int]) -> np.ndarray:
    if options.picture is not None:
        return fit(read_image(options.picture), size)
    coarse = np.random.default_rng(0).integers(0, 256, (size[0] // 32 + 2, size[1] // 32 + 2, 3), dtype=np.uint8)
    return fit(coarse, size)


def call(options: Options, picture: Path, threads: int, *more: str) -> str:
    """Output of the program. Raises EngineError with what it complains of."""
    libraries = folder("openvino")
    where = () if libraries is None else ("--runtime", str(libraries))
    command = (str(options.program), str(options.engine), str(picture), "--threads", str(threads), *where, *more)
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{options.program}: cannot be run ({error.strerror}); build it with CMake") from error
    if result.returncode:
        said = result.stderr.removeprefix("error: ").strip()
        raise EngineError(
            said or f"{options.program}: ended with status {result.returncode} and said nothing; {WANTED}"
        )
    return result.stdout


def labels_of(options: Options, picture: Path, threads: int, out: Path) -> np.ndarray:
    """The program's labels [H, W] of a picture. Raises EngineError where it writes none."""
    call(options, picture, threads, "--out", str(out))
    written = sorted((out / "labels").glob("*"))
    if len(written) != 1:
        raise EngineError(f"{options.program}: wrote no labels; {WANTED}")
    return np.asarray(Image.open(written[0]))


def program_p50(output: str) -> float:
    """Milliseconds of the median call, from what `--time` prints."""
    found = re.search(r"p50 (\S+) ms", output)
    if found is None:
        raise EngineError(f"{PROGRAM}: printed no time; is it of this version?")
    return float(found.group(1))


def require_same_labels(
    session: Session, module: segmenter_trt.Session, program: np.ndarray, image: np.ndarray
) -> None:
    """Raises EngineError where one labels a pixel otherwise than the Python session."""
    expected = session(image)
    for name, labels in ((MODULE, module.run(image)), (PROGRAM, program)):
        if not np.array_equal(labels, expected):
            raise EngineError(f"{name}: other labels than the {PYTHON} at {np.mean(labels != expected):.2%} of pixels")


def native(options: Options) -> None:
    if options.json is not None:
        require_writable(options.json)
    threads = options.threads or usable_cores()
    with tempfile.TemporaryDirectory() as name, open_engine(options.engine, "openvino", threads=threads) as session:
        module = segmenter_trt.Session(segmenter_trt.Engine(options.engine, threads=threads))
        height, width = module.engine.manifest["height"][1], module.engine.manifest["width"][1]
        image = picture_for(options, (height, width))
        path = Path(name, "picture.ppm")
        Image.fromarray(image).save(path)
        require_same_labels(session, module, labels_of(options, path, threads, Path(name)), image)

        def p50(function: Callable[[], object]) -> float:
            return float(np.median(burst(function, 0.0, options.calls, warmup=max(options.calls // 10, 1)).ms))

        distances = Distances(gauge(threads))
        ms = take_turns(
            {
                PYTHON: lambda: p50(lambda: session(image)),
                MODULE: lambda: p50(lambda: module.run(image)),
                PROGRAM: lambda: program_p50(call(options, path, threads, "--time", str(options.calls))),
            },
            options.rounds,
            distances.settle,
        )
    placed = counted(distances.of_rounds(len(ms), options.rounds), options.rounds)[0]
    how = f"{width}x{height}, {threads} threads, {options.rounds} rounds of {options.calls} calls"
    report(options, ms, placed, how)
    if options.json is not None:
        measured = {"p50_ms_by_round": ms, "counted_rounds": placed.rounds, "core_to_core_ns": placed.core_to_core_ns}
        write_record(options.json, options, measured | {"cores_moved": placed.moved, "timed": TIMED})


def moved(placed: Placement) -> str:
    """What became of rounds in which the cores were farther apart; empty where none was."""
    if not placed.moved:
        return ""
    if placed.core_to_core_ns is None:
        return "the cores moved meanwhile, and too few rounds are of one distance: all count; "
    return f"the cores moved meanwhile: {len(placed.rounds)} rounds count, in which they were the nearest; "


def report(options: Options, every: dict[str, list[float]], placed: Placement, how: str) -> None:
    ms = {name: [each[index] for index in placed.rounds] for name, each in every.items()}
    table = Table("", "ms p50", "images/s", "times the Python session (quartiles)")
    for name, each in ms.items():
        low, middle, high = np.quantile(np.divide(ms[PYTHON], each), (0.25, 0.5, 0.75))
        median = float(np.median(each))
        table.add_row(name, f"{median:.3f}", f"{1000 / median:.1f}", f"{middle:.3f} ({low:.3f} to {high:.3f})")
    console = wide_console()
    console.print(
        f"{options.engine.name}, {how}; {moved(placed)}timed: {TIMED}; labels of all three are equal", soft_wrap=True
    )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    return run(native, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
