"""Ahead-of-time compilation, in processes of its own: this one may be interpreting kernels."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import segmenter_kernels
from segmenter_kernels import aot, cubin
from segmenter_kernels.add_layernorm import DEPLOYED_WIDTHS
from segmenter_kernels.aot import table
from segmenter_kernels.compiling import (
    OPS,
    Compiled,
    compile_kernel,
    faults,
    specialisations,
)
from segmenter_kernels.parameters import parameters
from segmenter_kernels.specialisation import Specialisation
from segmenter_kernels.tiles import ARCHITECTURES
from tests.kernels.uninterpreted import JUDGED, python

SPECIALISATION = Specialisation(
    name="toy",
    kernel=None,
    types={"x_ptr": "*fp16"},
    constants={},
    aligned=frozenset(),
    num_warps=4,
    num_stages=2,
    matrix=True,
    asynchronous=True,
)
GOOD = Compiled(
    name="toy",
    architecture=90,
    target="sm_90a",
    symbol="toy",
    cubin=b"",
    ptx="",
    threads=128,
    registers=255,
    stack_bytes=0,
    shared_bytes=1000,
    dynamic_shared_bytes=1000,
    scratch_bytes=0,
    scratch_alignment=1,
    parameter_bytes=(8, 8, 8),
    descriptors=(),
    instructions={"HGMMA": 3, "LDGSTS": 8},
    warnings=(),
    overwritten=(),
    not_followed="",
    specialisation=SPECIALISATION,
)


def compiler(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "segmenter_kernels.aot", *map(str, arguments))


@pytest.mark.slow
@JUDGED
@pytest.mark.timeout(1500)  # 6:30 of two slow cores alone (2026-11-27); other tests run beside it
def test_every_kernel_keeps_its_budget_on_every_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    result = compiler()
    with capsys.disabled():
        print(f"\n{result.stdout}")
    assert result.returncode == 0, result.stdout + result.stderr
    for architecture in ARCHITECTURES:
        for each in specialisations(architecture):
            assert any(line.split()[:2] == [each.name, str(architecture)] for line in result.stdout.splitlines())


def test_two_compilations_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = compiler("--only", "add_layernorm_fp16_c256", "--architectures", 80, 90, "--out", tmp_path / name)
        assert result.returncode == 0, result.stderr
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["add_layernorm_fp16_c256.fatbin", "manifest.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    kernels = json.loads((tmp_path / "a" / "manifest.json").read_text())["kernels"]
    assert [(k["architecture"], k["target"], k["symbol"]) for k in kernels] == [
        (80, "sm_80", "_forward"),
        (90, "sm_90a", "_forward"),
    ]
    assert [each["bytes"] for each in kernels[0]["launch"]] == kernels[0]["parameter_bytes"]
    # six pointers, two integers, a float, then the two scratch pointers Triton always adds
    assert kernels[0]["parameter_bytes"] == [8] * 6 + [4] * 3 + [8] * 2


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stack_bytes": 8}, "stack frame of 8 bytes: registers spilt"),
        ({"registers": 255, "threads": 288}, "255 registers x 288 threads pass 65536"),
        ({"shared_bytes": 232449}, "232449 bytes of shared memory, limit 232448"),
        ({"architecture": 89, "shared_bytes": 101377, "instructions": {"HMMA": 1, "LDGSTS": 1}}, "limit 101376"),
        ({"threads": 64}, "64 threads, asked for 128"),
        ({"warnings": ("C7515: serialised",)}, "ptxas: C7515: serialised"),
        ({"overwritten": ("%patch",)}, "%patch: overwritten while a product still reads it"),
        ({"not_followed": "scf.while"}, "cannot be followed: scf.while"),
        ({"instructions": {"HMMA": 3, "LDGSTS": 8}}, "no tensor-core instruction"),
        ({"instructions": {"HGMMA": 3}}, "no asynchronous copy (LDGSTS)"),
        (
            {
                "specialisation": replace(SPECIALISATION, types={"x_desc": "tensordesc<fp16[64, 64]>"}),
                "parameter_bytes": (128, 4, 4, 8, 8, 8, 8),
            },
            "no asynchronous copy (UTMALDG)",
        ),
        ({"parameter_bytes": (8, 8)}, "parameters of [8, 8] bytes, described as [8, 8, 8]"),
    ],
)
def test_each_limit_is_a_fault_of_its_own(change, fault) -> None:
    assert faults(GOOD) == []
    found = faults(replace(GOOD, **change))
    assert len(found) == 1
    assert fault in found[0]
    assert fault in table([replace(GOOD, **change)])


def test_names_are_unique_and_begin_with_their_op() -> None:
    for architecture in ARCHITECTURES:
        names = [each.name for each in specialisations(architecture)]
        assert len(set(names)) == len(names)
        assert all(name.startswith(OPS) for name in names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pixels_of_every_patch_size_and_more_than_256_classes_have_a_form(architecture: int) -> None:
    forms = list(specialisations(architecture))
    patches = [form.constants for form in forms if form.name.startswith("patch_embed")]
    words = {(each["P"], each["EVEN"]) for each in patches if each["BYTES"] == 4}
    assert words >= {(8, True), (16, True), (32, True), (16, False)}  # 360x480 is no multiple of 16
    assert 14 in {each["P"] for each in patches if each["BYTES"] == 1}
    labels = {form.types["labels_ptr"] for form in forms if form.name.startswith("upsample_argmax")}
    assert labels == {"*u8", "*i16", "*i32"}


def test_widths_are_whole_tiles_where_no_mask_guards_them() -> None:
    # descriptors fill what hangs over an edge with zeros; pointers read it
    for architecture in ARCHITECTURES:
        for each in specialisations(architecture):
            if each.constants.get("EVEN_K") and each.types["x"].startswith("*"):
                step = each.constants["BLOCK_K"]
            elif each.name.startswith("mask_scores") and each.constants["EVEN"]:
                step = each.constants["BLOCK_C"]
            else:
                continue
            for width in DEPLOYED_WIDTHS:
                assert width % step == 0, f"{each.name} on {architecture}: {width} in steps of {step}"
                assert 4 * width % step == 0


def test_compiling_while_interpreting_is_refused() -> None:
    if not segmenter_kernels.checks.INTERPRETED:
        pytest.skip("this process compiles kernels for its GPU and does not interpret them")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compile_kernel(next(specialisations(80)), 80)


@pytest.mark.parametrize(("kind", "architecture"), [("fp64", 90), ("tensordesc<fp16[64, 64]>", 80)])
def test_a_parameter_no_launcher_could_pass_is_named(kind: str, architecture: int) -> None:
    with pytest.raises(ValueError, match=r"parameter x of type .* on sm_"):
        parameters({"x": kind}, architecture)


def test_what_stands_in_the_way_is_one_line_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiled(*_: object) -> list[Compiled]:
        raise AssertionError("compiled")

    def told(*arguments: str) -> str:
        assert aot.main(["--only", "add_layernorm_fp16_c256", "--architectures", "80", *arguments]) == 2
        return capsys.readouterr().err

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.setattr(aot, "compile_all", compiled)
    monkeypatch.setattr(aot, "fatbinary", lambda: "fatbinary")
    assert told("--workers", "-1") == "error: --workers -1: wanted at least 1\n"
    full = tmp_path / "full"
    assert told("--out", str(full)) == f"error: {full}: not empty; name a new folder, or remove it first\n"
    assert told("--out", str(full / "file")) == f"error: {full / 'file'}: a file; name a new folder\n"
    monkeypatch.undo()
    monkeypatch.setattr(aot, "compile_all", compiled)
    monkeypatch.setattr(aot.shutil, "which", lambda _: None)
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda _: None)
    assert told("--out", str(tmp_path / "new")).startswith("error: no program 'fatbinary' found; pip install")
    assert not (tmp_path / "new").exists()


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # a kernel every four seconds
    seconds = iter(range(0, 100, 4))
    monkeypatch.setattr(aot.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(aot, "compile_all", lambda *_: [GOOD] * 7)
    monkeypatch.setattr(aot, "jobs_of", lambda *_: [(90, "toy")] * 7)
    assert aot.main([]) == 0
    progress = "3 of 7 kernels compiled\n6 of 7 kernels compiled\n7 of 7 kernels compiled\n"
    assert capsys.readouterr().err.startswith(progress)


def test_a_kernel_nobody_knows_is_named() -> None:
    result = compiler("--only", "convolution")
    assert result.returncode == 2
    assert "no specialisation's name contains 'convolution'" in result.stderr


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x01", b"PK\x03\x04 and more"])
def test_bytes_that_are_no_cubin_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a cubin"):
        cubin.resources(data)
    with pytest.raises(ValueError, match="not a cubin"):
        cubin.machine_code(data)
