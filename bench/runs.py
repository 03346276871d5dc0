"""One JSON file a run: what every benchmark writes and the report reads."""

import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmenter import files
from segmenter.errors import ConfigError, DataError
from segmenter.files import atomic_path
from segmenter_bench import machine

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.console import Console
    from rich.table import Table

FAMILY = "segmenter-bench/"
SCHEMA = f"{FAMILY}1"
# what every row of a kind has, null where it has no value
ROW_KEYS = {
    "throughput": ("engine", "precision", "batch", "region", "status", "timing"),
    "miou": ("engine", "precision", "status", "miou"),
    "checks": ("op", "shape", "dtype", "status", "error", "budget"),
    "kernels": ("op", "shape", "dtype", "provider", "status", "ms_p50", "tflops", "gb_per_s", "share"),
    "stages": ("stage", "ms", "share_of_time", "flops", "traffic_bytes", "bound_ms", "share_of_bound"),
    "machine": ("type", "tflops", "gb_per_s"),
}
WRITTEN_BY = "JSON that bench-throughput, bench-miou, bench-stages, bench-kernels or bench.acceptance wrote"
WIDEST_TABLE = 180  # letters
REQUIRED = ("schema", "kind", "created", "command", "machine", "model", "settings", "rows", "unavailable")


def new_run(kind: str, command: str, model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """An empty run: when, how and where, still without rows."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "machine": machine.facts(),
        "model": model,
        "settings": settings,
        "rows": [],
        "unavailable": [],
    }


def command_of(program: str, argv: Sequence[str] | None) -> str:
    """The command line that made a run, as someone else would type it into a shell."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == program.split()[-1:]:  # `segmenter NAME ...` has the command's name among its arguments
        arguments = arguments[1:]
    return shlex.join([*program.split(), *arguments])


def wide_console() -> "Console":
    """Standard output for tables: wide enough for every column, which a narrow terminal wraps and never cuts."""
    from rich.console import Console  # not above: what only writes runs needs no package for tables

    # reasons and names are text: 'segmenter-trt[tensorrt]' has no style in it
    return Console(width=max(Console().width, WIDEST_TABLE), markup=False)


def table_of(words: Sequence[str], figures: Sequence[str]) -> "Table":
    """A table without rows: columns of words, then of figures."""
    from rich import box  # as above
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in words:
        table.add_column(title, no_wrap=True)
    for title in figures:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def print_styled(console: "Console", start: str, style: str, rest: str) -> None:
    """Print a line whose start has a style; a terminal wraps it, and a file has it whole."""
    from rich.text import Text  # as above

    console.print(Text.assemble((start, style), rest), soft_wrap=True)


def print_rest(console: "Console", run: Mapping[str, Any], name: Callable[[dict[str, Any]], str]) -> None:
    """Print what a run's table leaves out: why rows failed, each by its `name`, what was unavailable, and its notes."""
    for row in run["rows"]:
        if row["status"] == "failed":
            print_styled(console, "failed", "red", f" {name(row)}: {row['reason']}")
    for one in run["unavailable"]:
        print_styled(console, "unavailable", "yellow", f" {one['engine']}: {one['reason']}")
    for note in run["notes"]:
        console.print(note, style="dim", soft_wrap=True)


def require_writable(folder: Path) -> None:
    """See, before a long run, that its result can be written into a folder, which need not exist yet; nothing is left.

    Raises ConfigError naming the folder.
    """
    try:
        files.require_writable(folder / "run.json")
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot write there ({error.strerror}); pass another folder") from error


def write_run(run: dict[str, Any], folder: Path) -> Path:
    """Write a run as `<kind>-<model>-<time>.json` in `folder`, atomically; NaN and infinities become null."""
    stamp = re.sub(r"[^0-9T]", "", run["created"])
    name = re.sub(r"[^a-z0-9]+", "-", f"{run['kind']} {run['model']['name']}".lower()).strip("-")
    path = folder / f"{name}-{stamp}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_finite(run), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def write_record(path: Path, options: "DataclassInstance", measured: dict[str, Any]) -> None:
    """Write what one command measured, with its options and the machine, atomically: a file no report reads.

    Options of a group stand beside the others, as on the command line; NaN and infinities become null.
    """
    given: dict[str, Any] = {}
    for name, value in asdict(options).items():
        given |= value if isinstance(value, dict) else {name: value}
    record = {**given, **measured, "machine": machine.facts()}
    with atomic_path(path) as temporary:
        text = json.dumps(_finite(record), indent=1, allow_nan=False, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")


def runs_in(folder: Path) -> list[Path]:
    """Files of a folder that may be runs, by name; JSON that is another command's is named on stderr."""
    found: list[Path] = []
    others: list[Path] = []
    for file in sorted(folder.glob("*.json")):
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            run = {"schema": SCHEMA}  # for `read_run` to say what is wrong with it
        schema = str(run.get("schema")) if isinstance(run, dict) else ""
        (found if schema.startswith(FAMILY) else others).append(file)
    if others:
        print(f"passed over, no runs: {', '.join(file.name for file in others)}", file=sys.stderr)
    return found


def read_run(path: Path) -> dict[str, Any]:
    """A run written by `write_run`.

    Raises DataError when the file is missing, not JSON, or not a run of this schema with the rows of its kind.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; pass {WRITTEN_BY}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); pass {WRITTEN_BY}") from error
    missing = [key for key in REQUIRED if not isinstance(run, dict) or key not in run]
    if missing or run["schema"] != SCHEMA or run["kind"] not in ROW_KEYS:
        what = f"lacks {', '.join(missing)}" if missing else f"has schema {run['schema']!r} and kind {run['kind']!r}"
        raise DataError(
            f"{path}: {what}; wanted a run of schema {SCHEMA!r}, kind {' or '.join(ROW_KEYS)}; make it again"
        )
    for index, row in enumerate(run["rows"]):
        if missing := [key for key in ROW_KEYS[run["kind"]] if not isinstance(row, dict) or key not in row]:
            raise DataError(
                f"{path}: row {index} lacks {', '.join(missing)}, which a {run['kind']} run has; make it again"
            )
    return dict(run)


def _finite(value: Any) -> Any:
    """The same with None for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
