"""Builds that are stopped: Ctrl-C reaches the builder, and what is beside a plan is of one build."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from segmenter.errors import EngineError
from segmenter_engines import build as build_command
from segmenter_engines import builder
from segmenter_engines.build import build
from segmenter_engines.build_progress import run_stoppable
from segmenter_engines.layer_report import report_path
from segmenter_engines.manifest import manifest_path, read_manifest
from tests.builders import VERSIONS, fake_fixture, rtx_fixture, source_fixture  # noqa: F401 - fixtures
from tests.fake_builder import fake_tensorrt


def test_what_is_read_beside_a_plan_is_of_one_build(fake, source, tmp_path, monkeypatch):
    """Stopped between any two renames, the old files are all back; nothing else is left."""
    plan = tmp_path / "m.plan"
    build(source, plan, engine="tensorrt", timing_cache="none")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename, count = Path.replace, 0

    def stopping(self, target):
        nonlocal count
        if self.suffixes[-2:-1] == [".part"]:
            count += 1
            if count == stop:
                raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stopping)
    for stop in (1, 2, 3):
        count = 0
        with pytest.raises(KeyboardInterrupt):
            build(source, plan, engine="tensorrt", timing_cache="none", level=1)
        assert count == stop
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    stop = 0
    manifest = build(source, plan, engine="tensorrt", timing_cache="none", level=1)
    assert read_manifest(plan) == manifest
    assert json.loads(report_path(plan).read_text())["sha256"] == manifest.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)


def test_a_manifest_beside_another_plan_is_refused(fake, source, tmp_path):
    """What a killed process can leave between two renames: a new plan, an old manifest."""
    plan = tmp_path / "m.plan"
    build(source, plan, engine="tensorrt", timing_cache="none")
    old = manifest_path(plan).read_bytes()
    plan.write_bytes(plan.read_bytes() + b"newer")
    assert manifest_path(plan).read_bytes() == old
    with pytest.raises(EngineError, match="expected SHA-256"):
        read_manifest(plan)


def test_ctrl_c_reaches_the_work_and_waits_for_it():
    stop, ended = threading.Event(), []

    def work():
        assert stop.wait(30)
        ended.append(True)

    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        run_stoppable(work, stop)
    assert ended == [True]


def test_ctrl_c_ends_a_build_at_the_builders_next_step(fake, source, tmp_path, monkeypatch):
    stops: list[threading.Event] = []
    make = builder.monitor
    monkeypatch.setattr(builder, "monitor", lambda trt, watcher, stop: stops.append(stop) or make(trt, watcher, stop))
    told: list[str] = []

    class Pressing:
        """Presses Ctrl-C at the first step; at the next the builder has to be gone."""

        def begin(self, phase, steps):
            told.append("begin")

        def step(self, phase, step):
            told.append(f"step {step}")
            if step == 0:
                os.kill(os.getpid(), signal.SIGINT)
                assert stops[0].wait(60)

        def end(self, phase):
            told.append("end")

    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "m.plan", engine="tensorrt", timing_cache="none", watcher=Pressing())
    assert told == ["begin", "step 0"]
    assert fake.builds == []
    assert not list(tmp_path.iterdir())


@pytest.mark.tensorrt
def test_ctrl_c_ends_a_build_and_leaves_nothing(rtx, source, tmp_path, monkeypatch, capsys):
    make = builder.monitor

    def interrupting(trt, watcher, stop):
        threading.Thread(target=lambda: (time.sleep(0.02), os.kill(os.getpid(), signal.SIGINT))).start()
        return make(trt, watcher, stop)

    monkeypatch.setattr(builder, "monitor", interrupting)
    assert build_command.main([str(source), "--out", str(tmp_path / "m.plan")]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_the_monitor_ends_a_build_once_it_is_to_stop():
    stop = threading.Event()
    watched = builder.monitor(fake_tensorrt(VERSIONS[1]), None, stop)
    assert watched.step_complete("Timing", 0)
    stop.set()
    assert not watched.step_complete("Timing", 1)
