"""Buffers filled again under a running product: found in Triton's code as text, and in kernels compiled here.

test_compiled_forms.py has more of them, which Triton itself makes wrong.
"""

import pytest

from segmenter_kernels import compiling
from segmenter_kernels.overwritten import overwritten
from segmenter_kernels.ttgir import NotFollowedError
from tests.kernels.uninterpreted import script

NEXT = [
    "%more = arith.addi %at, %c1 : i32",
    "%past = arith.cmpi sge, %more, %c3 : i32",
    "%next = arith.select %past, %c0, %more : i32",
]
# of tiles that threads fill and groups of four warps multiply
HOPPER = (
    "%dot = ttng.warp_group_dot %read, %other, %total {inputPrecision = 0 : i32, isAsync = true} : "
    "!ttg.memdesc<64x64xf16> * !ttg.memdesc<64x64xf16> -> tensor",
    "%w:2 = ttng.warp_group_dot_wait %dot, %read {pendings = 1 : i32} : tensor, !ttg.memdesc<64x64xf16>",
)
# a barrier of two places, as deep as products are under way
BLACKWELL = (
    "ttng.tc_gen5_mma %read, %other, %sum, %true, %true, %ended[%true] {is_async} : !ttg.memdesc<64x64xf16>",
    "ttng.wait_barrier %before, %parity deps %read : !ttg.memdesc<1xi64>",
)
BRANCH = "%chosen = scf.if %c -> (i32) {\nscf.yield %a : i32\n} else {\nscf.yield %b : i32\n}"


FILL = "%t = ttg.async_copy_global_to_local %pointer, %fill mask %m : tensor"


def found(text: str) -> tuple[str, ...]:
    return overwritten(f"module {{\ntt.func public @kernel() {{\n{text}\n}}\n}}")


def ring_and_loop(ahead: int, product: str, *waits: str) -> str:
    """Triton's code of a loop over a ring of three places, each filled so many steps before it is multiplied."""
    return "\n".join(
        [
            *(f"%c{number} = arith.constant {number} : i32 loc(#loc)" for number in range(4)),
            "%c-1_i32 = arith.constant -1 : i32",
            "%true = arith.constant true loc(#loc)",
            "%ring = ttg.local_alloc : () -> !ttg.memdesc<3x64x64xf16, #shared, #smem, mutable>",
            "%other = ttg.local_alloc : () -> !ttg.memdesc<64x64xf16, #shared, #smem, mutable>",
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
            FILL,
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
    assert found(ring_and_loop(1, product, wait)) == ()
    assert found(ring_and_loop(2, product, wait)) == ()
    assert found(ring_and_loop(3, product, wait)) == ("%ring",)
    assert found(ring_and_loop(2, product)) == ("%ring",)
    assert found(ring_and_loop(2, product, BRANCH, wait)) == ()
    assert found(ring_and_loop(3, product, BRANCH, wait)) == ("%ring",)
    outer = "scf.for %tile = %c0 to %tiles step %programs : i32 {\n"
    assert found(f"{outer}{ring_and_loop(3, product, wait)}\n}}") == ("%ring",)
    assert found(f"{outer}{ring_and_loop(1, product, wait)}\n}}") == ()


def test_a_product_waited_for_at_once_runs_on_under_no_copy() -> None:
    product, wait = HOPPER
    assert found(ring_and_loop(3, product, wait.replace("pendings = 1", "pendings = 0"))) == ()
    assert found(ring_and_loop(3, product.replace("isAsync = true", "isAsync = false"))) == ()
    assert found(ring_and_loop(3, BLACKWELL[0].replace("is_async", ""))) == ()


@pytest.mark.parametrize("taken", [True, False])
def test_a_wait_on_one_of_two_ways_is_none_on_the_other(taken: bool) -> None:
    product, wait = HOPPER[0], HOPPER[1].replace("pendings = 1", "pendings = 0")
    empty, full = "scf.yield %a : i32", f"{wait}\nscf.yield %b : i32"
    ways = (full, empty) if taken else (empty, full)
    assert found(ring_and_loop(3, product, "%x = scf.if %c -> (i32) {{\n{}\n}} else {{\n{}\n}}".format(*ways)))
    # a way that is known to be taken is the only one
    known = "%x = scf.if %true -> (i32) {{\n{}\n}} else {{\n{}\n}}".format(*ways)
    assert bool(found(ring_and_loop(3, product, known))) is not taken


@pytest.mark.parametrize("product", [HOPPER[0], BLACKWELL[0]])
def test_a_wait_on_an_unknown_condition_is_none(product: str) -> None:
    wait = HOPPER[1] if product == HOPPER[0] else BLACKWELL[1]
    assert found(ring_and_loop(2, product, wait)) == ()
    assert found(ring_and_loop(2, product, f"scf.if %c {{\n{wait}\n}}")) == ("%ring",)
    if product == BLACKWELL[0]:
        assert found(ring_and_loop(2, product, wait.replace("%parity deps", "%unknown deps"))) == ("%ring",)
        assert found(ring_and_loop(2, product, wait.replace("%parity deps", "%parity, %c deps"))) == ("%ring",)
        # of the same condition
        unsure = product.replace("%true, %true, %ended", "%true, %c, %ended")
        assert found(ring_and_loop(2, unsure, wait.replace("%parity deps", "%parity, %c deps"))) == ()


PLACES = "\n".join(
    f"%p{at} = ttg.memdesc_index %ring[%c{at}] : !ttg.memdesc<3x64x64xf16> -> !ttg.memdesc<64x64xf16>"
    for at in range(3)
)
# of three places the last is free: a product reads the first and the second, and is not waited for
READ = "\n".join(HOPPER[0].replace("%read", name).replace("%dot", f"%of{name[1:]}") for name in ("%p0", "%p1"))


def straight(*lines: str) -> str:
    """What `ring_and_loop` begins with, products of two places, and some lines instead of its loop."""
    start = ring_and_loop(1, "").partition("%out:5")[0]
    return "\n".join([start, PLACES, READ, *lines])


def filled(place: str) -> str:
    return FILL.replace("%fill", place)


@pytest.mark.parametrize(
    "chosen",
    [
        "%at = scf.if %c -> (!ttg.memdesc<64x64xf16>) {{\nscf.yield {0} : i\n}} else {{\nscf.yield {1} : i\n}}",
        "%at = arith.select %c, {0}, {1} : !ttg.memdesc<64x64xf16>",
    ],
)
def test_one_of_two_places_is_each_of_them(chosen: str) -> None:
    assert found(straight(filled("%p2"))) == ()
    assert found(straight(chosen.format("%p2", "%p2"), filled("%at"))) == ()
    assert found(straight(chosen.format("%p2", "%p0"), filled("%at"))) == ("%ring",)
    free = "%free = ttg.local_alloc : () -> !ttg.memdesc<64x64xf16>"
    assert found(straight(free, chosen.format("%free", "%free"), filled("%at"))) == ()
    assert set(found(straight(free, chosen.format("%free", "%p0"), filled("%at")))) == {"%ring", "%other"}
    # and read
    read = HOPPER[0].replace("%read", "%at").replace("%dot", "%more")
    assert found(straight(free, chosen.format("%free", "%p2"), read, filled("%p2"))) == ("%ring",)


def test_a_place_that_is_not_known_is_every_place() -> None:
    assert set(found(straight(filled("%unknown")))) == {"%ring", "%other"}
    read = HOPPER[0].replace("%read", "%unknown").replace("%dot", "%more")
    assert found(straight(read, filled("%p2"))) == ("%ring",)
    # of registers
    held = read.replace(": !ttg.memdesc<64x64xf16> *", ": tensor<64x64xf16, #mma> *")
    assert found(straight(held, filled("%p2"))) == ()


def test_a_fill_at_a_late_step_is_one() -> None:
    at = "%late = arith.cmpi eq, %i, %c20 : i32"
    number = "%c20 = arith.constant 20 : i32\n%n = tt.get_program_id x : i32"
    loop = (
        "scf.for %i = %c0 to {} step %c1 : i32 {{\n%late = arith.cmpi {}, %i, %c20 : i32\nscf.if %late {{\n{}\n}}\n}}"
    )
    assert at in loop.format("%n", "eq", "")
    assert found(straight(number, loop.format("%n", "eq", filled("%p2")))) == ()
    assert found(straight(number, loop.format("%n", "eq", filled("%p0")))) == ("%ring",)
    assert found(straight(number, loop.format("%c20", "eq", filled("%p0")))) == ()
    assert found(straight(number, loop.format("%c20", "sgt", filled("%p0")))) == ()
    # a variable that counts, as a loop's own
    counted = (
        "%end = scf.for %s = %c0 to %n step %c1 iter_args(%i = %c0) -> (i32) : i32 {\n"
        f"{at}\nscf.if %late {{\n{filled('%p0')}\n}}\n%j = arith.addi %i, %c1 : i32\nscf.yield %j : i32\n}}"
    )
    assert found(straight(number, counted)) == ("%ring",)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("ttng.async_tma_gather %x[%r, %c0] %p0, %b0, %true : tensor", "ttng.async_tma_gather"),
        ("ttng.new_fill %p0 : i32", "ttng.new_fill"),
        ("%x = other.thing %unknown : !ttg.memdesc<64x64xf16> -> i32", "other.thing"),
        (HOPPER[0].replace("ttng.warp_group_dot", "ttng.warp_group_dot_sparse"), "ttng.warp_group_dot_sparse"),
        (f"scf.while : () -> () {{\nscf.condition %c\n}} do {{\n{filled('%p0')}\nscf.yield\n}}", "scf.while"),
        ("ttg.warp_specialize(%p0) {\n}", "ttg.warp_specialize"),
        ("%x = other.thing %c, <{ttg.local_store %c, %p0}> : i32", "ttg.local_store, 1 times"),
        ("% = ttg.local_load %p0 : tensor", "line '% ="),
        ("ttng.tc_gen5_mma %p0 {is_async} : tensor", "ttng.tc_gen5_mma, written"),
        ("scf.if %c {", "does not end"),
        ("}\n}\n}\n}", "did not begin"),
    ],
)
def test_what_is_not_understood_is_refused(line: str, named: str) -> None:
    with pytest.raises(NotFollowedError, match=named):
        found(straight(line))


def test_text_without_a_function_is_refused_and_a_fault() -> None:
    with pytest.raises(NotFollowedError, match="no function"):
        overwritten("a text of some words")
    assert compiling._searched("a text of some words") == ((), "no function of Triton's code for GPUs")


def test_a_product_of_two_results_is_one() -> None:
    assert found(straight(HOPPER[0].replace("%dot =", "%more, %token =").replace("%read", "%p2"), filled("%p2")))


def test_tiles_that_change_places_as_a_loops_variables_are_followed() -> None:
    result = script(
        """
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.experimental.gluon._runtime import GluonASTSource

        from segmenter_kernels.compiling import _uncached
        from segmenter_kernels.overwritten import overwritten
        from tests.kernels import rings

        def in_kernel(kernel, architecture, **constants):
            types = {"x_ptr": "*fp16", "out_ptr": "*fp32", "steps": "i32"}
            names = list(kernel.arg_names)
            signature = {name: types.get(name, "constexpr") for name in names}
            source = GluonASTSource(kernel, signature, {(names.index(name),): x for name, x in constants.items()}, {})
            with _uncached():
                made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4})
            return overwritten(made.asm["ttgir"])

        assert in_kernel(rings.on_hopper, 90, PENDING=0) == ()
        assert len(in_kernel(rings.on_hopper, 90, PENDING=1)) == 2
        assert in_kernel(rings.on_blackwell, 100, WAITS=True) == ()
        assert len(in_kernel(rings.on_blackwell, 100, WAITS=False)) == 2
        """
    )
    assert result.returncode == 0, result.stderr
