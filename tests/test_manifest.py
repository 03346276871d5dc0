"""What is written can be read, and what cannot be read is not written."""

import shlex
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec

import pytest

from segmenter.cli import COMMANDS
from segmenter.errors import EngineError
from segmenter_engines.manifest import command_line, manifest_path, read_manifest
from segmenter_engines.manifest_fields import FieldError, read_fields
from tests.test_plan_checks import plan  # noqa: F401 - a fixture


def test_a_manifest_is_read_as_it_was_written(plan):  # noqa: F811
    path, manifest = plan
    manifest.write(path)
    assert read_manifest(path) == manifest
    library = {"name": "p.so", "sha256": "0" * 64}
    fuller = replace(
        manifest,
        plugins=("SegmenterAttention",),
        details={"plugin_library": library, "layers": {"total": 3}},
        verification={"x": {"passed": False, "faults": ["ü\u2028"]}},
        classes=("a ü", "a ü"),
    )
    fuller.write(path)
    assert read_manifest(path) == fuller
    assert read_manifest(path).plugin_library == library


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"artifact": "n.plan"}, r"is the manifest of n\.plan"),
        ({"batch": (1, 2, True)}, r"batch \[1, 2, True\]: wanted an integer from 1 to 65536"),
        ({"height": (32, 32.0, 32)}, "height .* wanted an integer"),
        ({"model": "a\nb"}, "model .* without control characters"),
        ({"outputs": ("labels", "labels")}, "outputs .* without the same twice"),
        ({"engine": "any"}, "engine 'any': wanted the one the plan was built for"),
        ({"compute_capabilities": ("9",)}, "compute_capabilities .* such as 9.0"),
        ({"details": {"drop": float("nan")}}, "NaN is no number"),
        ({"details": {"plugin_library": {"name": "../p.so", "sha256": "0" * 64}}}, "without a folder"),
        ({"details": {"plugin_library": "p.so"}}, "an object of name and sha256"),
        ({"palette": ((0, 0, 0), (0, 0, 256))}, "palette .* from 0 to 255"),
    ],
)
def test_what_cannot_be_read_is_not_written(plan, changes, complaint):  # noqa: F811
    path, manifest = plan
    with pytest.raises(EngineError, match=f"cannot be written: .*{complaint}"):
        replace(manifest, **changes).write(path)
    assert not manifest_path(path).exists()


@pytest.mark.parametrize("depth", [33, 500, 700, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_how_deep_a_manifest_is_nested_ends_in_one_line(depth, opening, closing):
    for before, after in (("", ""), ('{"format": 2, "details": ', "}")):
        text = before + opening * depth + ("1" if opening != "[" else "") + closing * depth + after
        with pytest.raises(FieldError, match="nested deeper than 32"):
            read_fields(text.encode())


def started_as(monkeypatch, module, *argv):
    """Let this process seem to run `python -m module`, or a program of its own where None."""
    spec = None if module is None else ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr("sys.argv", list(argv))


def test_a_command_is_one_line_whatever_its_arguments(monkeypatch):
    started_as(monkeypatch, None, "/home/me/segmenter", "build", "a\nb\x1b[2J", "x" * 9000)
    told = command_line()
    assert told.startswith("segmenter build 'a b [2J' x")
    assert told.isprintable()
    assert len(told) == 8000


@pytest.mark.parametrize(
    ("module", "argv", "wanted"),
    [
        (None, ["/usr/bin/segmenter", "build", "my m/x.onnx"], ["segmenter", "build", "my m/x.onnx"]),
        (None, ["/home/me/deploy.py", "$HOME"], ["python", "deploy.py", "$HOME"]),
        ("segmenter.__main__", ["/a/segmenter/__main__.py", "build", "x"], ["segmenter", "build", "x"]),
        ("segmenter_bench.throughput", ["/a/throughput.py", "x"], ["python", "-m", "segmenter_bench.throughput", "x"]),
        *(
            (module, ["/a/file.py", "x;y"], ["segmenter", name, "x;y"])
            for name, (module, _) in COMMANDS.items()
            if module.startswith("segmenter_engines.")
        ),
    ],
)
def test_a_command_is_what_a_shell_runs_again(module, argv, wanted, monkeypatch):
    started_as(monkeypatch, module, *argv)
    assert shlex.split(command_line()) == wanted
