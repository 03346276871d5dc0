"""What the compiler makes of kernels, read off their code, in processes of its own."""

import pytest

from tests.kernels.uninterpreted import JUDGED, script


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


def test_instructions_are_counted_for_each_kernel_of_several() -> None:
    result = script(
        """
        from segmenter_kernels.compiling import compile_kernel, compile_kernels, specialisations
        from segmenter_kernels.cubin import machine_code

        product = "linear_gelu_fp16_small"
        wanted = [("attention_fp16_d32", 80), (product, 90), ("add_layernorm_fp16_c256", 80), (product, 80)]
        known = {(form.name, sm): form for sm in (80, 90) for form in specialisations(sm)}
        found = compile_kernels((known[each], each[1]) for each in wanted)
        assert [(each.name, each.architecture) for each in found] == wanted
        for each in found:
            counted = each.specialisation.matrix * len(machine_code(each.cubin)) // 16
            assert sum(each.instructions.values()) == counted, each.name
        assert found[3] == compile_kernel(known[wanted[3]], 80)
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@JUDGED
def test_the_slope_of_gelu_keeps_its_budget() -> None:
    # only training launches it, so no specialisation is its own
    result = script(
        """
        from itertools import product

        from segmenter_kernels.compiling import compile_kernels, faults
        from segmenter_kernels.gemm import SIZES
        from segmenter_kernels.linear import _specialisation
        from segmenter_kernels.tiles import ARCHITECTURES, of_architecture

        def form(architecture, size):
            tile = of_architecture("linear", f"gelu_grad_{size}", architecture)
            return _specialisation("fp16", "gelu_grad", size, tile)

        wanted = list(product(ARCHITECTURES, SIZES))
        found = compile_kernels((form(*each), each[0]) for each in wanted)
        for each, kernel in zip(wanted, found, strict=True):
            assert faults(kernel) == [], each
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@JUDGED
@pytest.mark.parametrize("architecture", [80, 90])
def test_linear_layers_of_rows_that_begin_anywhere_keep_their_budget(architecture: int) -> None:
    # launchers choose other tiles for them than those of the forms compiled ahead of time
    result = script(
        f"""
        from types import SimpleNamespace

        import torch
        import triton

        from segmenter_kernels import linear_fp8, linear_gelu, linear_int8, linear_residual, pretended
        from segmenter_kernels.cubin import resources

        compile_kernel, found = triton.compiler.compile, []

        def compiled(source, target, options, **_):
            kernel = compile_kernel(source, target=target, options=options)
            found.append((K, len(found), resources(kernel.asm["cubin"]).stack_bytes))
            return SimpleNamespace()

        t, M, N = pretended.empty, 20000, 3070
        with pretended.gpu({architecture}, compiled):
            for K in (769, 768):  # of all rows, and of those of the result alone
                x, weight, bias, out = t(M, K), t(N, K), t(N), t(M, N)
                linear_residual(x, weight, bias, out)
                linear_gelu(x.requires_grad_(), weight, bias).backward(out)
                for op, kind in ((linear_int8, torch.int8), (linear_fp8, torch.float8_e4m3fn)):
                    if {architecture} >= 89 or op == linear_int8:
                        op(t(M, K, dtype=kind), t(N, K, dtype=kind), t(M, dtype=torch.float32), bias.float(), bias)
        print(found)
        assert len(found) == {8 + 2 * (architecture >= 89)}
        assert not any(stack_bytes for *_, stack_bytes in found)
        """
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@JUDGED
@pytest.mark.parametrize("architecture", [80, 90])
def test_attentions_gradients_keep_their_budget(architecture: int) -> None:
    # engines launch none of them, so no specialisation is theirs
    result = script(
        f"""
        from types import SimpleNamespace

        import triton

        from segmenter_kernels import attention_backward, pretended
        from segmenter_kernels.cubin import resources

        compile_kernel, found = triton.compiler.compile, {{}}

        def compiled(source, target, options, **_):
            if source.name in ("_queries", "_keys"):
                kernel = compile_kernel(source, target=target, options=options)
                found[source.name, D] = resources(kernel.asm["cubin"]).stack_bytes
            return SimpleNamespace()

        with pretended.gpu({architecture}, compiled):
            for D in (64, 96):
                attention_backward(pretended.empty(2, 97, 3 * D), pretended.empty(2, 97, 9 * D), 3)
        print(found)
        assert found == dict.fromkeys((("_queries", 64), ("_keys", 64), ("_queries", 96), ("_keys", 96)), 0)
        """
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_rows_overwritten_under_a_running_product_are_seen() -> None:
    result = script(
        """
        from dataclasses import replace
        from segmenter_kernels.compiling import compile_kernel, faults
        from segmenter_kernels.specialisation import Specialisation
        from tests.kernels.wrong_kernels import product_and_squares

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
        from segmenter_kernels.compiling import compile_kernels, faults
        from segmenter_kernels.tiles import ARCHITECTURES

        wanted = [
            (form, architecture)
            for architecture, kind in product(ARCHITECTURES, KINDS[1:])
            for form, default in zip(specialisations(architecture, kind), specialisations(architecture), strict=True)
            if form.name.startswith("attention_fp16") and form != default
        ]
        for (form, architecture), kernel in zip(wanted, compile_kernels(wanted), strict=True):
            assert faults(kernel) == [], (architecture, form.name)
        print(len(wanted))
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
