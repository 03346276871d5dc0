"""Plans opened and closed: shared, with plugins, refused by name, and everything given back."""

import gc
import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

import segmenter_trt
from segmenter.errors import EngineError, Unavailable
from segmenter.files import sha256
from segmenter_engines import open_session
from segmenter_engines.gpu_targets import PORTABLE
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions import plan as plans
from segmenter_engines.sessions import tensorrt as module
from segmenter_engines.sessions.runtime_cache import cache_file
from segmenter_engines.sessions.tensorrt import TensorRTSession
from tests.fake_machine import machine_fixture, plan_fixture, shots  # noqa: F401 - fixtures
from tests.fake_tensorrt import VERSIONS, Engine, labels_of, write_plan


def test_sessions_share_a_plan_and_the_last_closes_it(machine, plan):
    trt = machine.trt["tensorrt-rtx"]
    first, second = (open_session(plan, threads=1) for _ in range(2))
    assert trt.deserialized == 1
    assert first.describe()["plan_shared_by"] == 2
    first.close()
    first.close()
    assert trt.alive == 1
    assert np.array_equal(second(shots(1)), labels_of(shots(1), 5))
    second.close()
    assert trt.alive == 0
    with open_session(plan, threads=1):
        assert trt.deserialized == 2


def test_a_plan_keeps_the_settings_that_its_contexts_refer_to(machine, plan):
    trt = machine.trt["tensorrt-rtx"]
    with open_session(plan, threads=1), open_session(plan, threads=1):
        (opened,) = plans._OPEN.values()
        first, second = trt.contexts
        assert first is second
        assert list(opened._configs.values()) == [first]
    assert opened._configs == {}


def test_who_has_no_folder_of_their_own_opens_plans_all_the_same(machine, plan, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", nobody)
    assert cache_file(read_manifest(plan).sha256, machine.cuda.gpu) is None
    for _ in range(2):
        open_session(plan, threads=1).close()
    assert len(machine.trt["tensorrt-rtx"].compiled) == 2


def test_compiled_kernels_are_kept_for_the_next_process(machine, plan, tmp_path):
    trt, file = machine.trt["tensorrt-rtx"], cache_file(read_manifest(plan).sha256, machine.cuda.gpu)
    open_session(plan, threads=1).close()
    assert len(trt.compiled) == 1
    assert file.is_relative_to(tmp_path)
    assert file.read_bytes() == b"kernels"
    written = file.stat().st_mtime_ns
    open_session(plan, threads=1).close()
    assert len(trt.compiled) == 1
    assert file.stat().st_mtime_ns == written
    assert cache_file(read_manifest(plan).sha256, "another GPU") != file
    # of another version: compiled anew and written over
    file.write_bytes(b"others")
    open_session(plan, threads=1).close()
    assert len(trt.compiled) == 2
    assert file.read_bytes() == b"kernels"
    # where nothing can be read or written: told, and the session is as good
    file.unlink()
    file.mkdir()
    session = open_session(plan, threads=1)
    assert np.array_equal(session(shots(1)), labels_of(shots(1), 5))
    with pytest.warns(RuntimeWarning, match=r"kernels of a plan, .*; the next process compiles"):
        session.close()


def test_two_sessions_of_a_plan_in_two_threads(machine, tmp_path):
    path = write_plan(tmp_path / "m.plan", height=(32, 48, 64), width=(32, 48, 64))
    wrong, together = [], threading.Barrier(2)

    def work(seed):
        try:
            together.wait(10)
            with open_session(path, threads=1) as session:
                for turn in range(12):
                    images = shots(1 + turn % 3, 32 + 8 * (turn % 2), 48, seed=100 * seed + turn)
                    if not np.array_equal(session(images), labels_of(images, 5)):
                        wrong.append((seed, turn))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert machine.trt["tensorrt-rtx"].deserialized <= 2  # 1 where they overlap


@pytest.mark.parametrize("engine", sorted(VERSIONS))
def test_plugins_are_loaded_first_and_once(machine, tmp_path, monkeypatch, engine):
    trt, library = machine.trt[engine], tmp_path / "libplugins.so"
    library.write_bytes(b"plugins")
    trusted = {"plugin_library": {"name": library.name, "sha256": sha256(library)}}
    path = write_plan(tmp_path / "m.plan", engine, plugins=("SegmenterAttention", "SegmenterLinear"), details=trusted)
    with pytest.raises(EngineError, match=r"needs the plugin library libplugins\.so"):
        open_session(path, threads=1)
    monkeypatch.setattr(segmenter_trt, "plugin_library", lambda: str(library), raising=False)
    trt.library_brings = ("SegmenterAttention",)
    with pytest.raises(EngineError, match=r"ops SegmenterLinear are needed, which .*libplugins\.so does not bring"):
        open_session(path, threads=1)
    assert trt.deserialized == 0
    trt.creators.append("SegmenterLinear")
    for _ in range(2):
        with open_session(path, threads=1) as session:
            assert np.array_equal(session(shots(1)), labels_of(shots(1), 5))
    assert trt.loaded == [str(library)]
    with TensorRTSession(path, 1, plugins=library):
        pass
    library.write_bytes(b"others")
    with pytest.raises(EngineError, match="SHA-256"):
        open_session(path, threads=1)


def test_what_cannot_be_opened_is_named_and_leaves_nothing(machine, tmp_path, monkeypatch, plan):
    trt = machine.trt["tensorrt-rtx"]
    trt.refuses_plan = True
    with pytest.raises(EngineError, match=r"model\.fp16\.plan: TensorRT-RTX cannot load it: magic tag does not match"):
        open_session(plan, threads=1)
    trt.refuses_plan = False
    monkeypatch.setattr(Engine, "create_execution_context", lambda engine, how: None)
    with pytest.raises(EngineError, match="TensorRT-RTX makes no context: no reason given"):
        open_session(plan, threads=1)
    monkeypatch.undo()
    with pytest.raises(EngineError, match="precision 'int8': tensorrt-rtx computes in what its artifact holds, fp16"):
        open_session(plan, threads=1, precision="int8")


def test_a_plan_is_told_to_be_damaged_before_what_its_gpu_lacks(machine, monkeypatch, plan):
    """Nor does what lacks a driver say that it is whole unseen."""

    def missing(engine):
        raise Unavailable("no driver")

    monkeypatch.setattr(module, "require_driver", missing)
    with pytest.raises(Unavailable, match="no driver"):
        open_session(plan, threads=1)
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(EngineError, match=r"manifest vouches for \(expected SHA-256 .*; copy both files again") as told:
        open_session(plan, threads=1)
    assert not isinstance(told.value, Unavailable)


def test_what_is_not_as_the_manifest_says_is_named(machine, tmp_path, plan):
    machine.cuda.capability = (7, 5)
    with pytest.raises(Unavailable, match="engine tensorrt-rtx: Fake GPU is older than Ampere"):
        open_session(plan, threads=1)
    machine.cuda.capability = (8, 6)
    path = write_plan(tmp_path / "m.plan", compute_capabilities=("9.0",))
    with pytest.raises(EngineError, match=r"built for GPUs of compute capability 9\.0, Fake GPU has 8\.6"):
        open_session(path, threads=1)
    # an H100, of which no plan of TensorRT-RTX is, unless it was built with other words
    machine.cuda.capability = (9, 0)
    path = write_plan(tmp_path / "m.plan", compute_capabilities=PORTABLE)
    wanted = (
        r"built for GPUs of compute capability 8\.0 or 8\.6 or 8\.9 or 12\.0, Fake GPU has 9\.0; run it on one of those"
    )
    with pytest.raises(EngineError, match=wanted):
        open_session(path, threads=1)
    machine.cuda.capability = (8, 6)
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(EngineError, match="is not the file its manifest vouches for"):
        open_session(plan, threads=1)
    path = write_plan(tmp_path / "m.plan", outputs=("logits",))
    with pytest.raises(EngineError, match=r"m\.plan: gives logits; a session needs labels or masks of a plan"):
        open_session(path, threads=1)
    path = write_plan(tmp_path / "m.plan")
    replace(read_manifest(path), outputs=("labels", "masks")).write(path)
    with pytest.raises(
        EngineError, match=r"says normalized in, labels, masks out, the plan itself images FLOAT, labels"
    ):
        open_session(path, threads=1)
    assert machine.trt["tensorrt-rtx"].deserialized == 1


@pytest.mark.parametrize("kind", ["pixels", "normalized"])
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"batch": (1, 1, 9)}, "batch 1 to 9, its profile takes 1 to 4"),
        ({"height": (40, 40, 48)}, "height 40 to 48, its profile takes 40"),
        ({"width": (48, 56, 56)}, "width 48 to 56, its profile takes 56"),
    ],
)
def test_a_manifest_that_promises_more_than_the_profile_is_named(machine, tmp_path, kind, said, message):
    path = write_plan(tmp_path / "m.plan", input=kind)
    with open_session(path, threads=1) as session:
        replace(read_manifest(path), **said).write(path)
        # of a plan that another session has open too
        with pytest.raises(
            EngineError, match=rf"m\.plan: its manifest says {message}; make it again: `segmenter build"
        ):
            open_session(path, threads=1)
        assert session.describe()["plan_shared_by"] == 1
    with pytest.raises(EngineError, match=message):
        open_session(path, threads=1)


def test_a_closed_session_says_so(machine, plan):
    session = open_session(plan, threads=1)
    session.close()
    for call in (
        lambda: session(shots(1)),
        lambda: next(session.stream(shots(1))),
        lambda: session.run_device(shots(1)),
        session.describe,
    ):
        with pytest.raises(EngineError, match="tensorrt-rtx-fp16, small: this session is closed; open it again"):
            call()
    session.close()


def test_a_session_nobody_holds_gives_everything_back(machine, plan):
    session = open_session(plan, threads=1)
    for _ in range(3):
        session(shots(1))
    assert machine.cuda.live
    del session
    gc.collect()
    assert machine.cuda.live == {}
    assert plans._OPEN == {}


def test_at_interpreter_exit_everything_is_given_back(tmp_path):
    script = f"""
import weakref
from pathlib import Path
import pytest
from segmenter_engines.sessions import open_engine
from tests.fake_tensorrt import write_plan
from tests.fake_machine import Machine, shots

machine = Machine(pytest.MonkeyPatch())
# finalizers run the last made first
weakref.finalize(machine, lambda cuda: print("left", len(cuda.live), cuda.faults), machine.cuda)
session = open_engine(write_plan(Path({str(tmp_path)!r}) / "m.plan"), threads=1)
for _ in range(3):
    session(shots(1))
stream = session.stream(shots(3))
next(stream)
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert run.stderr == ""
    assert run.stdout == "left 0 []\n"
    assert len(list((tmp_path / "cache").rglob("*.cache"))) == 1
