"""Forged, damaged, hostile files: each refused in one line, before a runtime reads it, in bounded memory and time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segmenter_engines.folder import FP32
from segmenter_engines.manifest import manifest_path
from tests import hostile
from tests.official_files import write_variant
from tests.test_plan_checks import plan_bytes


@pytest.fixture(scope="module")
def told(engine_folder, tmp_path_factory):
    """What `tests.hostile` found."""
    engines, folder = tmp_path_factory.mktemp("honest"), tmp_path_factory.mktemp("hostile")
    for path in (engine_folder / FP32, manifest_path(engine_folder / FP32), engine_folder / "checkpoint"):
        (engines / path.name).symlink_to(path)
    (engines / "m.plan").write_bytes(plan_bytes() + bytes(range(256)) * 64)
    write_variant(engines)
    command = [sys.executable, "-m", "tests.hostile", str(folder), str(engines)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def of(told, kind):
    return {name: outcome for name, outcome in told["cases"].items() if name.startswith(kind)}


def test_every_hostile_file_is_refused_in_one_line(told):
    unlike = {name: outcome for name, outcome in told["cases"].items() if not outcome.startswith("refused")}
    assert unlike == {}


def test_no_runtime_read_any_of_them_and_no_code_ran(told):
    assert told["runtime_calls"] == []
    assert not told["code_ran"]


def test_enough_was_tried(told):
    assert len(of(told, "manifest")) >= 12
    assert len(of(told, "values outside")) == 8 * 3
    assert len(of(told, "checkpoint")) == 14
    assert set(of(told, "flips")) == {"flips of a graph", "flips of a plan"}
    assert hostile.FLIPS == 1000


def test_refusals_name_what_is_wrong(told):
    for name, complaint in {
        "manifest: a field twice": "field 'sha256' is there twice",
        "manifest: a field too many": "unknown field 'run'",
        "manifest: a field too few": "field classes is missing",
        "manifest: an artifact in another folder": "artifact '../secret.onnx': wanted the name of a file",
        "manifest: true for a number": "patch_size True: wanted an integer from 1 to 1024",
        "manifest: the hash of another file": "(expected SHA-256 " + "0" * 64 + ", it has ",
        "values outside, openvino: initializer above": "has its values in another file ('../secret.bin')",
        "values outside, onnxruntime: branch of an If": "has its values in another file ('../secret.bin')",
        "graph: 5 GiB": "an ONNX file holds at most",
    }.items():
        assert complaint in told["cases"][name]


def test_it_took_little(told):
    assert told["cpu_s"] < 60
    if torch.version.cuda is None:
        assert told["limit"] == 2 << 30
