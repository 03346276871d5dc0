"""Benchmark runs to one self-contained HTML page, and to a Markdown table for a README."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmenter.cli import run as run_command
from segmenter.errors import ConfigError
from segmenter.files import atomic_path
from segmenter_bench.origins import read_runs
from segmenter_bench.page import page
from segmenter_bench.page_markdown import markdown
from segmenter_bench.runs import WRITTEN_BY, command_of, runs_in
from segmenter_bench.sections import of_engines, sections


@dataclass(frozen=True)
class Options:
    """Make one HTML page of benchmark runs: accuracy against speed, every engine side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JSON files of bench-throughput, bench-miou, bench-stages, bench-kernels or bench.acceptance, or folders of them.
    Other JSON in a folder is passed over."""
    out: Path = Path("runs/bench/report.html")
    """The page to write."""
    title: str = "Segmenter engines: accuracy and speed"
    """Title of the page."""
    markdown: bool = False
    """Print a Markdown table of each network as well."""


def report(paths: Sequence[Path], out: Path, title: str, command: str) -> str:
    """Write the page of some runs atomically, and return their Markdown tables.

    paths: JSON files or folders holding them.
    Raises ConfigError without any run or where `out` is one, DataError for a file that is none or runs that do not
    belong in one table.
    """
    files = [file for path in paths for file in (runs_in(path) if path.is_dir() else [path])]
    if not files:
        raise ConfigError(f"no runs; pass {WRITTEN_BY}, or a folder of them")
    if out.resolve() in {file.resolve() for file in files}:
        raise ConfigError(f"--out {out}: is one of the runs, and would be lost; pass another name, such as report.html")
    runs = read_runs(files, out.parent)
    found = sections(runs)
    others = [run for run in runs if not of_engines(run)]
    text = page(title, found, command, others)
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return markdown(found, others)


def make_report(options: Options) -> int:
    tables = report(options.runs, options.out, options.title, command_of("segmenter report", None))
    if options.markdown:
        print(tables)
    print(options.out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(make_report, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
