"""Buffers filled again under a running product: found in Triton's code as text, and in kernels compiled here.

test_aot.py has more of them, which Triton itself makes wrong.
"""

import pytest

from segmenter_kernels.overwritten import overwritten
from tests.kernels.test_aot import script

NEXT = [
    "%more = arith.addi %at, %c1 : i32",
    "%past = arith.cmpi sge, %more, %c3 : i32",
    "%next = arith.select %past, %c0, %more : i32",
]
# of tiles that threads fill and groups of four warps multiply
HOPPER = (
    "%dot = ttng.warp_group_dot %read, %other, %total {inputPrecision = 0 : i32, isAsync = true} : tensor",
    "%w:2 = ttng.warp_group_dot_wait %dot, %read {pendings = 1 : i32} : tensor, !ttg.memdesc<64x64xf16>",
)
# a barrier of two places, as deep as products are under way
BLACKWELL = (
    "ttng.tc_gen5_mma %read, %other, %sum, %true, %true, %ended[%true] {is_async} : !ttg.memdesc<64x64xf16>",
    "ttng.wait_barrier %before, %parity deps %read : !ttg.memdesc<1xi64>",
)
BRANCH = "%chosen = scf.if %c -> (i32) {\nscf.yield %a : i32\n} else {\nscf.yield %b : i32\n}"


def ring_and_loop(ahead: int, product: str, *waits: str) -> str:
    """Triton's code of a loop over a ring of three places, each filled so many steps before it is multiplied."""
    return "\n".join(
        [
            *(f"%c{number} = arith.constant {number} : i32 loc(#loc)" for number in range(4)),
            "%c-1_i32 = arith.constant -1 : i32",
            "%true = arith.constant true loc(#loc)",
            "%ring = ttg.local_alloc : () -> !ttg.memdesc<3x64x64xf16, #shared, #smem, mutable>",
            "%barriers = ttg.local_alloc : () -> !ttg.memdesc<2x1xi64, #shared1, #smem, mutable>",
            *(
                f"%b{at} = ttg.memdesc_index %barriers[%c{at}] : !ttg.memdesc<2x1xi64> -> !ttg.memdesc<1xi64>\n"
                f"ttng.init_barrier %b{at}, 1 : !ttg.memdesc<1xi64>"
                for at in range(2)
            ),
            "%out:5 = scf.for %i = %c0 to %n step %c1 iter_args(%total = %zero, %last = %c-1_i32, %turn = %c0, "
            "%parity = %c1, %before = %b1) -> (tensor, i32, i32, i32, !ttg.memdesc<1xi64>)  : i32 {",
            "%at = arith.addi %last, %c1 : i32",
            *NEXT,
            "%read = ttg.memdesc_index %ring[%at] : !ttg.memdesc<3x64x64xf16> -> !ttg.memdesc<64x64xf16>",
            "%ended = ttg.memdesc_index %barriers[%turn] : !ttg.memdesc<2x1xi64> -> !ttg.memdesc<1xi64>",
            product,
            *waits,
            f"%far = arith.addi %at, %c{ahead} : i32",
            "%place = arith.remsi %far, %c3 : i32",
            "%fill = ttg.memdesc_index %ring[%place] : !ttg.memdesc<3x64x64xf16> -> !ttg.memdesc<64x64xf16>",
            "%t = ttg.async_copy_global_to_local %pointer, %fill mask %m : tensor",
            "%back = arith.subi %next, %c1 : i32",
            "%other_turn = arith.xori %turn, %c1 : i32",
            # the barrier of the step before is waited for: its parity changes every other step
            "%first = arith.cmpi eq, %turn, %c0 : i32",
            "%changed = arith.xori %parity, %c1 : i32",
            "%new = arith.select %first, %changed, %parity : i32",
            "scf.yield %total, %back, %other_turn, %new, %ended : tensor, i32, i32, i32, !ttg.memdesc<1xi64>",
            "} loc(#loc)",
            "%all = ttng.warp_group_dot_wait %out#0 {pendings = 0 : i32} : tensor",
            "ttng.wait_barrier %out#4, %out#3 : !ttg.memdesc<1xi64>",
        ]
    )


@pytest.mark.parametrize(("product", "wait"), [HOPPER, BLACKWELL])
def test_a_ring_is_overwritten_where_a_product_still_runs_and_no_place_is_free(product: str, wait: str) -> None:
    # one product runs on while the next tile comes: two of three places are taken
    assert overwritten(ring_and_loop(1, product, wait)) == ()
    assert overwritten(ring_and_loop(2, product, wait)) == ()
    assert overwritten(ring_and_loop(3, product, wait)) == ("%ring",)
    assert overwritten(ring_and_loop(2, product)) == ("%ring",)
    assert overwritten(ring_and_loop(2, product, BRANCH, wait)) == ()
    assert overwritten(ring_and_loop(3, product, BRANCH, wait)) == ("%ring",)
    outer = "scf.for %tile = %c0 to %tiles step %programs : i32 {\n"
    assert overwritten(f"{outer}{ring_and_loop(3, product, wait)}\n}}") == ("%ring",)
    assert overwritten(f"{outer}{ring_and_loop(1, product, wait)}\n}}") == ()


def test_a_product_waited_for_at_once_runs_on_under_no_copy() -> None:
    product, wait = HOPPER
    assert overwritten(ring_and_loop(3, product, wait.replace("pendings = 1", "pendings = 0"))) == ()
    assert overwritten(ring_and_loop(3, product.replace("isAsync = true", "isAsync = false"))) == ()
    assert overwritten(ring_and_loop(3, BLACKWELL[0].replace("is_async", ""))) == ()


@pytest.mark.parametrize("taken", [True, False])
def test_a_wait_on_one_of_two_ways_is_none_on_the_other(taken: bool) -> None:
    product, wait = HOPPER[0], HOPPER[1].replace("pendings = 1", "pendings = 0")
    empty, full = "scf.yield %a : i32", f"{wait}\nscf.yield %b : i32"
    ways = (full, empty) if taken else (empty, full)
    assert overwritten(ring_and_loop(3, product, "%x = scf.if %c -> (i32) {{\n{}\n}} else {{\n{}\n}}".format(*ways)))
    # a way that is known to be taken is the only one
    known = "%x = scf.if %true -> (i32) {{\n{}\n}} else {{\n{}\n}}".format(*ways)
    assert bool(overwritten(ring_and_loop(3, product, known))) is not taken


def test_tiles_that_change_places_as_a_loops_variables_are_followed() -> None:
    result = script(
        """
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.experimental.gluon._runtime import GluonASTSource

        from segmenter_kernels.compiling import _uncached
        from segmenter_kernels.overwritten import overwritten
        from tests.kernels import rings

        def found(kernel, architecture, **constants):
            types = {"x_ptr": "*fp16", "out_ptr": "*fp32", "steps": "i32"}
            names = list(kernel.arg_names)
            signature = {name: types.get(name, "constexpr") for name in names}
            source = GluonASTSource(kernel, signature, {(names.index(name),): x for name, x in constants.items()}, {})
            with _uncached():
                made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4})
            return overwritten(made.asm["ttgir"])

        assert found(rings.on_hopper, 90, PENDING=0) == ()
        assert len(found(rings.on_hopper, 90, PENDING=1)) == 2
        assert found(rings.on_blackwell, 100, WAITS=True) == ()
        assert len(found(rings.on_blackwell, 100, WAITS=False)) == 2
        """
    )
    assert result.returncode == 0, result.stderr
