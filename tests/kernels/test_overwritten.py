"""Buffers filled again under a running product, found in Triton's code as text; test_aot.py compiles some."""

import pytest

from segmenter_kernels.compiling import overwritten


def ring_and_loop(copies: int, pendings: int, between: str = "") -> str:
    """Triton's code of a loop over a ring of three places, so many filled before it."""
    return "\n".join(
        [
            "%ring = ttg.local_alloc : () -> !ttg.memdesc<3x64x64xf16, #shared, #smem, mutable>",
            "%view = ttg.memdesc_index %ring[%c0] : !ttg.memdesc<3x64x64xf16> -> !ttg.memdesc<64x64xf16>",
            *["%t = ttg.async_copy_global_to_local %pointer, %view mask %m : tensor"] * copies,
            "%out = scf.for %i = %c0 to %n step %c64 iter_args(%total = %zero) -> (tensor) : i32 {",
            between,
            "%dot = ttng.warp_group_dot %view, %other, %total {inputPrecision = 0 : i32, isAsync = true} : tensor",
            f"%w = ttng.warp_group_dot_wait %dot, %view {{pendings = {pendings} : i32}} : tensor",
            "%t = ttg.async_copy_global_to_local %pointer, %view mask %m : tensor",
            "scf.yield %w : tensor",
            "}",
        ]
    )


BRANCH = "%chosen = scf.if %c -> (i32) {\nscf.yield %a : i32\n} else {\nscf.yield %b : i32\n}"


@pytest.mark.parametrize("between", ["", BRANCH])
def test_a_ring_is_overwritten_where_a_product_still_runs_and_no_place_is_free(between: str) -> None:
    assert overwritten(ring_and_loop(3, 1, between)) == ("%ring",)
    assert overwritten(ring_and_loop(3, 0, between)) == ()
    assert overwritten(ring_and_loop(2, 1, between)) == ()
    outer = "scf.for %tile = %c0 to %tiles step %programs : i32 {\n"
    assert overwritten(f"{outer}{ring_and_loop(3, 1, between)}\n}}") == ("%ring",)
    assert overwritten(f"{outer}{ring_and_loop(2, 1, between)}\n}}") == ()
