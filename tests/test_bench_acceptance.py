"""The acceptance command: steps of their own process, cut in time, resumed, and a page of whatever there is."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segmenter_bench import acceptance, acceptance_subject
from segmenter_bench.acceptance import LOGS, PAGE, STEPS, Acceptance, Outcome, environment, log_name, outcomes
from segmenter_bench.acceptance_steps import ATTENTION_CASES, EXPORTED, KERNELS, RUNS, TESTED, Step, plan
from segmenter_bench.engines import choose
from tests.bench_samples import miou_run, throughput_run

ROOT = Path(__file__).resolve().parents[1]


def options(**values: Any) -> Any:
    import argparse

    usual = {"out": "out", "only": None, "folder": None, "data": None, "dataset": "shapes", "images": 0, "tune": False}
    return argparse.Namespace(**(usual | values))


def step(name: str, code: str, limit_s: float = 60.0, needs: tuple[str, ...] = ()) -> Step:
    """A step that runs some Python: the module `timeit` runs code once."""
    return Step(name, "machine", "timeit", ("-n", "1", "-r", "1", code), limit_s, needs)


def run(out: Path, steps: list[Step], seconds: float = 60.0) -> dict[str, Outcome]:
    with environment() as variables:
        Acceptance(out, time.monotonic() + seconds, variables).run(steps)
    return {one.step: one for one in outcomes(out)}


def test_the_command_of_a_step_is_what_a_shell_runs_again() -> None:
    assert step("quoted", "print('a b')").command == """python -m timeit -n 1 -r 1 'print('"'"'a b'"'"')'"""


def test_steps_end_well_or_badly_and_the_next_goes_on(tmp_path: Path) -> None:
    steps = [
        step("good", "print(1)"),
        step("bad", "raise ValueError('broken here')"),
        step("slow", "import time; time.sleep(60)", limit_s=1.0),
        step("lacking", "print(1)", needs=("no_such_package",)),
        step("crashing", "import os; os.kill(os.getpid(), 9)"),
        step("last", "print(2)"),
    ]
    found = run(tmp_path, steps)
    assert {name: one.status for name, one in found.items()} == {
        **{"good": "ok", "bad": "failed", "slow": "cut", "lacking": "missing", "crashing": "failed", "last": "ok"}
    }
    assert found["bad"].reason == "ValueError: broken here"
    assert found["slow"].reason == "stopped after 1 s"
    assert found["lacking"].reason == "not installed: no_such_package"
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    for words in ("ValueError: broken here", "not installed: no_such_package", "stopped after 1 s"):
        assert words in page


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'a').write('x')"
    fails = f"open({str(mark)!r}, 'a').write('y'); raise ValueError"
    for _ in range(2):
        run(tmp_path, [step("done", code), step("fails", fails)])
    assert mark.read_text() == "xyy"
    with (tmp_path / STEPS).open("a") as file:
        file.write('{"step": "fails", "gro')  # cut in the middle of a line
    assert {one.step: one.status for one in outcomes(tmp_path)} == {"done": "ok", "fails": "failed"}


def test_after_an_edit_or_on_another_machine_steps_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Acceptance, "page", lambda self: None)
    mark, package = tmp_path / "mark", tmp_path / "segmenter_bench"
    package.mkdir()
    monkeypatch.setattr(acceptance_subject, "_package", lambda name: package)
    steps = [step("done", f"open({str(mark)!r}, 'a').write('x')")]

    def times() -> int:
        run(tmp_path / "out", steps)
        return len(mark.read_text())

    assert [times(), times()] == [1, 1]
    (package / "ceilings.py").write_text("x = 1\n")
    assert [times(), times()] == [2, 2]
    (package / "ceilings.py").write_text("x = 2\n")
    (package / "notes.md").write_text("no code\n")
    assert [times(), times()] == [3, 3]
    monkeypatch.setattr(acceptance, "machine", lambda: "Another CPU, 64 cores, GPU 9000")
    assert [times(), times()] == [4, 4]


def test_a_machine_is_its_processor_and_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuInit(self, flags: int) -> int:
            return 0

        def cuDeviceGetCount(self, count: Any) -> int:
            count._obj.value = 2
            return 0

        def cuDeviceGet(self, device: Any, index: int) -> int:
            device._obj.value = index
            return 0

        def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
            name.value = f"GPU {device.value}".encode()
            return 0

    monkeypatch.setattr(acceptance_subject.ctypes, "CDLL", lambda name: Driver())
    assert acceptance_subject.gpus() == ["GPU 0", "GPU 1"]
    assert acceptance_subject.machine().endswith(" cores, GPU 0, GPU 1")
    monkeypatch.setattr(Driver, "cuInit", lambda self, flags: 100)
    assert acceptance_subject.gpus() == []


def test_a_step_of_other_options_is_not_done(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for letter in "xyx":
        run(tmp_path, [step("accuracy", f"open({str(mark)!r}, 'a').write({letter!r})")])
    assert mark.read_text() == "xyx"


def test_what_ran_with_other_tiles_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "configs", lambda: tmp_path)
    monkeypatch.setattr(Acceptance, "page", lambda self: None)
    mark, tuned = tmp_path / "mark", str(tmp_path / "GPU_9000.json")
    steps = {
        group: replace(step(group, f"open({str(mark)!r}, 'a').write({letter!r})"), group=group)
        for group, letter in {"machine": "m", "kernels": "k", "engines": "e"}.items()
    }
    steps["tune"] = replace(step("tune", f"open({tuned!r}, 'w').write('tiles')"), group="tune")
    for names in (["machine", "kernels"], ["machine", "kernels"], ["machine", "kernels", "tune", "engines"]):
        run(tmp_path / "out", [steps[name] for name in names])
    assert mark.read_text() == "mke"
    for _ in range(2):
        run(tmp_path / "out", [steps[name] for name in ("machine", "tune", "kernels", "engines")])
    assert mark.read_text() == "mkek"


def alive(pid: int) -> bool:
    """Whether a process runs: gone, or dead and not yet waited for, it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are told by /proc")
def test_what_a_step_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    code = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True);"
        f"time.sleep(100)"
    )
    assert run(tmp_path, [step("long", code, limit_s=3.0)])["long"].status == "cut"
    pid, deadline = int(mark.read_text()), time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, "the step's child is alive"
        time.sleep(0.05)


def test_a_page_that_takes_too_long_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(acceptance, "PAGE_SECONDS", 0.01)
    assert run(tmp_path, [step("one", "print(1)"), step("two", "print(2)")])["two"].status == "ok"
    assert "no page: not written within" in capsys.readouterr().err


def test_without_time_steps_are_named_as_cut(tmp_path: Path) -> None:
    found = run(tmp_path, [step("late", "print(1)")], seconds=1.0)
    assert (found["late"].status, found["late"].seconds) == ("cut", 0.0)


def test_the_page_shows_what_runs_there_are_and_survives_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / RUNS).mkdir()
    for name, content in (("a", throughput_run()), ("b", miou_run())):
        (tmp_path / RUNS / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / RUNS / "c.json").write_text('{"schema": "segm', encoding="utf-8")
    run(tmp_path, [step("good", "print(1)")])
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "openvino-int8" in page
    assert "0.6285" in page
    assert "openvino-int8" in (tmp_path / PAGE).with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_stopped_from_outside_it_leaves_a_page_and_no_child(tmp_path: Path, end: signal.Signals) -> None:
    started = tmp_path / "started"
    code = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    program = (
        "import sys; from tests.test_bench_acceptance import step; from segmenter_bench import acceptance;"
        f"acceptance.plan = lambda *_, **__: [step('first', 'print(1)'), step('long', {code!r}, 90.0)];"
        f"sys.exit(acceptance.main(['--out', {str(tmp_path / 'out')!r}, '--minutes', '2']))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(end)
    assert process.wait(timeout=60) == 130
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert ">first</a>" in page
    assert page.endswith("</main></body></html>\n")
    assert "| first | ok |" in (tmp_path / "out" / PAGE).with_suffix(".md").read_text(encoding="utf-8")
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_a_run_out_of_time_ends_with_1_and_a_page_and_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    logs = {name: tmp_path / "out" / LOGS / log_name(name) for name in ("first", "slow")}
    slow = f"import pathlib, time; time.sleep(0 if pathlib.Path({str(mark)!r}).exists() else 600)"
    monkeypatch.setattr(
        acceptance, "plan", lambda *_, **__: [step("first", "print(1)"), step("slow", slow), step("last", "")]
    )
    arguments = ["--out", str(tmp_path / "out"), "--minutes"]

    def clock() -> float:
        return 60.0 if logs["slow"].exists() else 48.6 if logs["first"].exists() else 0.0

    with monkeypatch.context() as patch:
        # however slow the machine: the first step has 54 s for itself, and once it has ended the slow one has 5.4
        patch.setattr(acceptance, "time", SimpleNamespace(monotonic=clock))
        assert acceptance.main([*arguments, "1"]) == 1
    said = capsys.readouterr()
    assert "--minutes 1: little will be done; 2 is the useful minimum" in said.err
    assert "not whole: slow, last; the same command goes on there" in said.err
    assert said.out.endswith(f"{PAGE}\n")
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert "stopped after 5 s" in page
    assert "no time left; the same command goes on here" in page
    mark.touch()
    assert acceptance.main([*arguments, "20"]) == 0
    said = capsys.readouterr()
    assert "first: done before" in said.err
    assert "not whole" not in said.err
    assert {one.status for one in outcomes(tmp_path / "out")} == {"ok"}


def test_the_help_says_what_a_cut_run_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        acceptance.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "the run then ends with 1 and the same command goes on there" in told
    assert "below 2 there is little" in told


def test_the_plan_puts_what_matters_first() -> None:
    groups = [one.group for one in plan(options(folder="m"), gpu=True)]
    assert groups[:2] == ["machine", "accuracy"]
    assert groups.index("kernels") < groups.index("engines", 3)
    names = [one.name for one in plan(options(), gpu=True)]
    assert names[:8] == [
        *("machine", "kernels judged", "kernels attention", "kernels bound by memory", "network Seg-B-Mask/16"),
        *("compiled Seg-B-Mask/16, batch 8", "compiled Seg-B-Mask/16, batch 1", "kernels products"),
    ]
    assert "engines Seg-B/8" in names
    assert len(set(names)) == len(names)
    tuned = [one.name for one in plan(options(tune=True), gpu=True)]
    assert tuned.index("tune attention") < tuned.index("kernels attention")
    assert [name for name in tuned if not name.startswith("tune ")] == names
    (exported,) = (one for one in plan(options(), gpu=True) if one.name == "exported engines")
    choose([name for name in exported.arguments if name in EXPORTED])  # all of them are engines
    cpu = plan(options(), gpu=False)
    assert [one.name for one in cpu] == ["machine", "kernel code", "engines Seg-Ti-Mask/16", "stages Seg-Ti-Mask/16"]
    assert {one.group for one in plan(options(only=["stages"]), gpu=True)} == {"stages"}
    bare = [one.name for one in plan(options(), gpu=True, bare=True)]
    assert bare.index("network Seg-B-Mask/16") < bare.index("engines Seg-B-Mask/16")
    assert [name for name in bare if name not in names] == [
        f"network {variant}" for variant in ("Seg-Ti-Mask/16", "Seg-S-Mask/16", "Seg-L-Mask/16", "Seg-B/8")
    ]
    assert all(
        one.needs == ("torch", "triton") for one in plan(options(), True, True) if one.name.startswith("network")
    )


def test_attention_is_tuned_for_every_kind_of_sequence() -> None:
    from segmenter_kernels.attention import KINDS

    assert list(ATTENTION_CASES) == [f"16-64{kind}" for kind in KINDS]


def test_every_op_is_judged_timed_and_tested() -> None:
    from segmenter_kernels import compiling
    from segmenter_kernels.workloads import OPS

    assert sorted(op for ops in KERNELS.values() for op in ops) == sorted(OPS)
    assert set(compiling.OPS) <= set(TESTED)
    assert all((ROOT / "tests" / "kernels" / f"test_{name}.py").is_file() for name in TESTED)


def test_what_a_machine_lacks_is_asked_once_and_costs_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, asked = [], []
    monkeypatch.setattr(Acceptance, "page", lambda self: pages.append(1))
    right = subprocess.run
    monkeypatch.setattr(acceptance.subprocess, "run", lambda *a, **k: asked.append(1) or right(*a, **k))
    with environment() as variables:
        here = Acceptance(tmp_path, time.monotonic() + 60, variables)
        before = len(asked)
        here.run([step(str(index), "print(1)", needs=("no_such_package",)) for index in range(3)])
    assert (len(pages), len(asked) - before) == (1, 1)


def test_a_plain_checkout_finds_its_packages(tmp_path: Path) -> None:
    """Where nothing is installed, children import the packages of the checkout the command lies in."""
    code = (
        "import importlib.util as u; from bench import acceptance;"
        "found = u.find_spec; u.find_spec = lambda name: None if name.startswith('segmenter') else found(name);"
        "import subprocess, sys\n"
        "with acceptance.environment() as variables:\n"
        "    u.find_spec = found\n"
        "    names = 'segmenter_bench.acceptance, segmenter.version, segmenter_kernels, segmenter_engines.manifest'\n"
        "    done = subprocess.run([sys.executable, '-S', '-c', f'import {names}; print(segmenter_bench.__file__)'],"
        " env=variables, capture_output=True, text=True)\n"
        "    print(done.stdout, done.stderr[-500:])\n"
    )
    # -S: without site-packages, so that only what the environment names is there; torch is not, and says so
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "No module named 'torch'" in done.stdout or "segmenter_bench/__init__.py" in done.stdout, done.stdout
    assert "No module named 'segmenter" not in done.stdout


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "2000"])
def test_times_that_are_none_are_refused(minutes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        acceptance.main(["--out", str(tmp_path), "--minutes", minutes])
    assert stop.value.code == 2
    assert "wanted above 0 and at most a day" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as stop:
        acceptance.main(["--out", str(tmp_path / "file" / "out")])
    assert stop.value.code == 2
    assert "cannot write there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("only", "told"),
    [
        (["kernels,engine"], "--only engine: wanted some of machine, kernels, tune, engines, stages, accuracy"),
        (["accuracy"], "nothing to do: accuracy needs --folder"),
        (["tune,accuracy"], "nothing to do: tune needs a GPU and --tune; accuracy needs --folder"),
    ],
)
def test_groups_that_are_none_or_have_nothing_to_do_are_named(
    only: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "gpus", list)
    with pytest.raises(SystemExit) as stop:
        acceptance.main(["--out", str(tmp_path / "out"), "--only", *only])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_groups_are_named_with_commas_or_blanks_and_what_is_left_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(acceptance, "gpus", list)
    monkeypatch.setattr(Acceptance, "run", lambda self, steps: asked.extend(step.group for step in steps))
    assert acceptance.main(["--out", str(tmp_path / "out"), "--only", "machine,accuracy", "stages"]) == 0
    assert asked == ["machine", "stages"]
    assert "left out: accuracy needs --folder" in capsys.readouterr().err
