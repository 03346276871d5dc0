"""Ahead-of-time compilation, in processes of its own: this one may be interpreting kernels."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import triton

import segmenter_kernels
from segmenter_kernels import aot, cubin
from segmenter_kernels.add_layernorm import DEPLOYED_WIDTHS
from segmenter_kernels.aot import table
from segmenter_kernels.compiling import (
    JUDGED_WITH,
    OPS,
    Compiled,
    compile_kernel,
    faults,
    specialisations,
)
from segmenter_kernels.parameters import parameters
from segmenter_kernels.specialisation import Specialisation
from segmenter_kernels.tiles import ARCHITECTURES

JUDGED = pytest.mark.skipif(
    not triton.__version__.startswith(f"{JUDGED_WITH}."),
    reason=f"machine code is judged as Triton {JUDGED_WITH} makes it; this is {triton.__version__}",
)
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


def script(text: str) -> subprocess.CompletedProcess[str]:
    return python("-c", textwrap.dedent(text))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = (Path(segmenter_kernels.__file__).parents[1], Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    return subprocess.run([sys.executable, *arguments], env=environment, text=True, capture_output=True, check=False)


@pytest.mark.slow
@JUDGED
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


def test_integers_of_one_compile() -> None:
    # the compiler takes an integer that is 1 at a launch for a constant
    result = script(
        """
        from dataclasses import replace
        from segmenter_kernels.compiling import compile_kernel, faults, specialisations

        for op, some in (
            ("upsample_argmax", (("H", "W"), ("h", "w"), ("K",))),
            ("merge_windows", (("stride", "rows"),)),
        ):
            form = next(form for form in specialisations(80) if form.name.startswith(op))
            integers = tuple(name for name, kind in form.types.items() if kind == "i32")
            for ones in (*some, integers):
                types = {name: kind for name, kind in form.types.items() if name not in ones}
                few = {"GROUP": 1} if "K" in ones and "GROUP" in form.constants else {}
                constants = {**form.constants, **dict.fromkeys(ones, 1), **few}
                assert faults(compile_kernel(replace(form, types=types, constants=constants), 80)) == [], (op, ones)
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@JUDGED
def test_the_slope_of_gelu_keeps_its_budget() -> None:
    # only training launches it, so no specialisation is its own
    result = script(
        """
        from segmenter_kernels.compiling import compile_kernel, faults
        from segmenter_kernels.gemm import SIZES
        from segmenter_kernels.linear import _specialisation
        from segmenter_kernels.tiles import ARCHITECTURES, of_architecture

        for architecture in ARCHITECTURES:
            for size in SIZES:
                tile = of_architecture("linear", f"gelu_grad_{size}", architecture)
                form = _specialisation("fp16", "gelu_grad", size, tile)
                assert faults(compile_kernel(form, architecture)) == [], (architecture, size)
        """
    )
    assert result.returncode == 0, result.stderr


def test_rows_overwritten_under_a_running_product_are_seen() -> None:
    result = script(
        """
        from dataclasses import replace
        from segmenter_kernels.compiling import compile_kernel, faults
        from segmenter_kernels.specialisation import Specialisation
        from tests.kernels.mixed_use import product_and_squares

        pointers = dict.fromkeys(("a_ptr", "b_ptr", "out_ptr"), "*fp16")
        form = Specialisation(
            name="toy", kernel=product_and_squares, types={**pointers, "K": "i32"}, constants={"WAITS": False},
            aligned=frozenset((*pointers, "K")), num_warps=4, num_stages=4, matrix=True, asynchronous=True,
        )
        found = faults(compile_kernel(form, 90))
        assert len(found) == 2 and all("overwritten while a product still reads it" in each for each in found), found
        assert faults(compile_kernel(replace(form, constants={"WAITS": True}), 90)) == []
        assert faults(compile_kernel(form, 80)) == []

        import importlib
        mask_scores = importlib.import_module("segmenter_kernels.mask_scores")
        form = next(each for each in mask_scores.specialisations(90) if each.name == "mask_scores_fp16_k160")
        types = {name: kind for name, kind in form.types.items() if name != "N"}
        one = replace(form, types=types, constants={**form.constants, "N": 1})
        assert compile_kernel(form, 90).overwritten == ()
        # a number of patches known when compiling undoes what waits for products: it must not become one
        assert len(compile_kernel(one, 90).overwritten) == 3 and form.kernel.do_not_specialize == ["N"]
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@JUDGED
def test_attentions_tiles_of_every_kind_keep_their_budget() -> None:
    # plugins launch the others
    result = script(
        """
        from itertools import product

        from segmenter_kernels.attention import KINDS, specialisations
        from segmenter_kernels.compiling import compile_kernel, faults
        from segmenter_kernels.tiles import ARCHITECTURES

        compiled = 0
        for architecture, kind in product(ARCHITECTURES, KINDS[1:]):
            for form, default in zip(specialisations(architecture, kind), specialisations(architecture), strict=True):
                if form.name.startswith("attention_fp16") and form != default:
                    compiled += 1
                    assert faults(compile_kernel(form, architecture)) == [], (architecture, kind, form.name)
        print(compiled)
        """
    )
    assert int(result.stdout or 0) > 0, result.stderr


def test_float32_sums_of_sixteen_channels_are_not_joined() -> None:
    result = script(
        r"""
        import re
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from segmenter_kernels.attention_forward import from_pointers
        from segmenter_kernels.tiles import of_architecture

        names = from_pointers.arg_names
        tile = of_architecture("attention", "32-64", 80)
        sizes = {name: tile[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_T", "PARTIAL")}
        constants = {"lse_ptr": None, "D": 64, "D_REST": 0, **sizes, "SMALL": 0}
        types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in names if name not in constants}
        signature = {name: types.get(name, "constexpr") for name in names}
        source = ASTSource(from_pointers, signature, {(names.index(name),): value for name, value in constants.items()})
        code = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ttir"]
        begins = re.findall(r"tt[.]dot %\S+ %\S+ (%\w+)", code)
        # four of scores in either loop, and one of values each, which goes on
        print(sum(at.startswith("%cst") for at in begins), len(begins))
        """
    )
    assert result.stdout == "8 10\n", result.stderr


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
    progress = "3 of 7 kernels compiled\n6 of 7 kernels compiled\n"
    assert capsys.readouterr().err.startswith(progress)


def test_a_kernel_nobody_knows_is_named() -> None:
    result = compiler("--only", "convolution")
    assert result.returncode == 2
    assert "no specialisation's name contains 'convolution'" in result.stderr


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x01", b"PK\x03\x04 and more"])
def test_bytes_that_are_no_cubin_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a cubin"):
        cubin.resources(data)
