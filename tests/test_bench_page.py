"""The pages in a real browser: nothing complains, nothing is cut, and every figure leads to the row it came from."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segmenter_bench import acceptance_page, report
from segmenter_bench.acceptance import PAGE, STEPS
from segmenter_bench.acceptance_steps import RUNS
from tests.bench_samples import checks_run, kernels_run, machine_run, miou_run, stages_run, throughput_run
from tests.browser import NAMES, Browser

WIDTHS = (1280, 1020, 400)  # the second: the least that tables are given
STEP = {
    "group": "engines",
    "status": "ok",
    "reason": None,
    "seconds": 61.0,
    "command": "python -m a.long.module --and options",
}


def fast(run: dict[str, Any]) -> dict[str, Any]:
    """The run of a machine whose figures have many digits."""
    for row in run["rows"]:
        if row["timing"]:
            row["timing"]["images_per_s"] *= 133.7
    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `segmenter report`: two networks, one judged, speeds and pictures, failures and what is missing."""
    folder = tmp_path_factory.mktemp("report")
    runs = (throughput_run(), miou_run(), fast(throughput_run(trained=False, name="Seg-Ti-Mask/16", batches=(1, 32))))
    for index, run in enumerate(runs):
        (folder / f"{index} {run['kind']}.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    assert report.main([str(folder), "--out", str(folder / "page" / "report.html")]) == 0
    return folder / "page" / "report.html"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an acceptance run, with kernels, stages and ceilings, and steps that went well or did not."""
    out = tmp_path_factory.mktemp("acceptance")
    (out / RUNS).mkdir()
    for run in (throughput_run(), miou_run(), machine_run(), stages_run(), checks_run(), kernels_run()):
        (out / RUNS / f"{run['kind']}.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    steps = [
        STEP | {"step": "engines Seg-Ti-Mask/16"},
        STEP | {"step": "stages", "status": "cut", "reason": "stopped after 120 s"},
    ]
    steps.append(
        STEP | {"step": "kernel code", "status": "failed", "reason": "RuntimeError: " + "a_very_long_name_" * 12}
    )
    (out / STEPS).write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    return acceptance_page.write(out)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["page", "judged"])
def test_pages_are_whole_and_quiet(browser: Browser, which: str, width: int, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(which)
    browser.open(path, width)
    assert browser.faults() == []
    browser.screenshot(path.with_name(f"{which}-{width}.png"))
    assert browser.value("document.querySelectorAll('h2').length") >= 2


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("the page is 1500 wide", lambda text: text.replace("<main>", '<div style="width:1500px">x</div><main>')),
        ("cut by div.tile: ", lambda text: text.replace("<style>", "<style>.tile{height:30px;overflow:hidden}")),
        ("console: ['no']", lambda text: text.replace("<main>", "<script>console.error('no')</script><main>")),
        ("exception: Uncaught", lambda text: text.replace("<main>", "<script>throw 1</script><main>")),
        (
            "fetched: http://127.0.0.1:9",
            lambda text: text.replace("<main>", "<script>fetch('http://127.0.0.1:9')</script><main>"),
        ),
        ("no picture: photo", lambda text: re.sub(r'src="data:image/jpeg;base64,[^"]*"', 'src="data:,"', text)),
        ("one over the other: ", lambda text: text.replace('class="tick" x="', 'class="tick" x="99" data-x="')),
        ("beyond the page: ", lambda text: text.replace("<style>", "<style>h3{margin-left:-9px;text-indent:-90px}")),
    ],
)
def test_a_page_that_is_broken_is_found_broken(
    browser: Browser, page: Path, tmp_path: Path, fault: str, change: Callable[[str], str]
) -> None:
    whole = page.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(change(whole), encoding="utf-8")
    browser.open(broken, 1280)
    assert any(fault in one for one in browser.faults()), browser.faults()


@pytest.mark.parametrize("which", ["page", "judged"])
def test_every_figure_leads_to_its_row(browser: Browser, which: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(which)
    browser.open(path, 1280)
    # cells of figures: all but names, types, verdicts, dashes, seconds of steps, what is wanted, and who made a kernel
    bare = browser.value(
        "[...document.querySelectorAll('table td, .ladder .value, .tile b')]"
        ".filter((cell) => /[0-9]/.test(cell.textContent) && !cell.querySelector('a'))"
        ".filter((cell) => !['seconds', 'reason', 'verdict', 'by', 'wanted', 'type'].includes(cell.dataset.label))"
        ".map((cell) => cell.textContent)"
    )
    assert all(re.fullmatch(r"\d+ of \d+", text) for text in bare), bare
    broken = (
        "[...document.querySelectorAll('a.from')].filter((one) => !document.querySelector(one.getAttribute('href')))"
    )
    broken += ".length"
    assert browser.value(broken) == 0
    assert browser.value("document.querySelectorAll('a.from').length") > 50
    ids = browser.value("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))


def test_a_figure_shows_the_row_it_was_read_from(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    shown = "[...document.querySelectorAll('.row')].filter((row) => row.offsetHeight).map((row) => row.innerText)"
    assert browser.value(shown) == []
    for cell, key in (
        ("tr.best td[data-label='images/s'] a", "images_per_s"),
        ("tr.best td[data-label='mIoU'] a", "miou"),
    ):
        figure = browser.value(
            f'(() => {{ const a = document.querySelector("{cell}"); a.click(); return a.innerText }})()'
        )
        (row,) = browser.value(shown)
        place, _, text = row.partition("\n")
        found = re.fullmatch(r"(\.\./\d \w+\.json), row (\d+) \(counted from 0\), line (\d+)", place.strip())
        assert found is not None, place
        file = (page.parent / found[1]).resolve()
        row_of_file = json.loads(file.read_text())["rows"][int(found[2])]
        value = (row_of_file["timing"] if key == "images_per_s" else row_of_file)[key]
        assert float(figure) == pytest.approx(value, rel=1e-3)
        assert json.loads(text) == row_of_file
        # the line is where the row begins in the file
        lines = file.read_text().splitlines()
        assert lines[int(found[3]) - 1] == "  {"
        assert lines[int(found[3])] == f'   "engine": "{row_of_file["engine"]}",'
        assert browser.faults() == []
    browser.value("document.querySelector('.rows a').click()")
    assert len(browser.value(shown)) > 5


def test_markdown_figures_lead_to_the_lines_of_their_rows(judged: Path) -> None:
    text = judged.with_suffix(".md").read_text(encoding="utf-8")
    places = dict(re.findall(r"^\[(run\d+-row\d+)\]: (\S+)", text, re.MULTILINE))
    used = set(re.findall(r"\]\[(run\d+-row\d+)\]", text))
    assert used == set(places)
    (best,) = (line for line in text.splitlines() if line.startswith("| `openvino-int8`"))
    figures = dict(re.findall(r"\[([^\]]+)\]\[(run\d+-row\d+)\]", best))
    file, _, line = places[figures["14.9"]].partition("#L")
    lines = (judged.parent / file).read_text().splitlines()
    assert lines[int(line)] == '   "engine": "openvino-int8",'
    assert f"{file}, row" in text
    for words in ("# Segmenter", "**Steps**", "Where the time goes", "Measured ceilings", "3,350", "Kernels against"):
        assert words in text


def test_the_markdown_of_nothing_says_so(tmp_path: Path) -> None:
    acceptance_page.write(tmp_path)
    assert "No runs yet." in (tmp_path / PAGE).with_suffix(".md").read_text(encoding="utf-8")


def test_a_page_that_is_not_there_is_no_page(browser: Browser, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ERR_FILE_NOT_FOUND"):
        browser.open(tmp_path / "none.html", 1280)


def test_a_browser_that_cannot_start_skips_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / NAMES[0]
    program.write_text("#!/bin/sh\necho 'no libnss3 here' >&2\nexit 127\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(pytest.skip.Exception, match="chromium cannot start here: no libnss3 here"):
        Browser()
