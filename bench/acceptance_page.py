"""The page of an acceptance run, whole or cut: every run it wrote, and what became of each step."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from segmenter.errors import DataError
from segmenter.files import atomic_path
from segmenter_bench.acceptance import PAGE, outcomes
from segmenter_bench.acceptance_steps import RUNS
from segmenter_bench.origins import read_runs
from segmenter_bench.page import page
from segmenter_bench.page_markdown import markdown
from segmenter_bench.runs import read_run
from segmenter_bench.sections import of_engines, sections
from segmenter_bench.targets import sheet, targets

TITLE = "Segmenter: what this machine showed"


def write(out: Path, say: Callable[[str], object] = lambda line: None) -> Path:
    """Write `report.html` and `report.md` of a folder; a run that cannot be read is left out and named in the log.

    say: called with a line for each target, where a GPU was measured.
    """
    files = []
    for file in sorted((out / RUNS).glob("*.json")):
        try:
            read_run(file)
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            files.append(file)
    runs = read_runs(files, out)
    found = sections(runs)
    others = [run for run in runs if not of_engines(run)]
    steps = outcomes(out)
    try:
        promised = sheet(others, found)
        reached = targets(others, found) if promised else []
    except DataError as error:  # runs of two GPUs are in the folder: the rest of the page stands
        print(f"no targets: {error}", file=sys.stderr)
        promised, reached = None, []
    text = page(TITLE, found, f"python -m bench.acceptance --out {out}", others, steps, promised)
    tables = f"# {TITLE}\n\n{markdown(found, others, steps, promised)}"
    for path, content in ((out / PAGE, text), ((out / PAGE).with_suffix(".md"), tables)):
        with atomic_path(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    for one in reached:
        say(f"{one.verdict}: {one.what}; wanted {one.wanted}{f', found {one.found}' if one.found else ''}")
    return out / PAGE


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    print(write(Path(arguments[0]), print))
    return 0


if __name__ == "__main__":
    sys.exit(main())
