import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from segmenter import ops
from segmenter_kernels import attention, attention_backward, tiles
from segmenter_kernels.attention import FEW, KINDS, LONG, SHORT, candidates, case_of
from segmenter_kernels.packed import HEAD_DIMS, case, parts
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import ARCHITECTURES, DTYPES, inputs, judge, judge_gradients, poisoned

NAN = float("nan")
every_kind = pytest.mark.parametrize("architecture", ARCHITECTURES)


def tile_of(dtype: torch.dtype, D: int, architecture: int, kind: str = "") -> tiles.Tile:
    return tiles.of_architecture("attention", case(dtype, D) + kind, architecture)


def check(shape: tuple[int, int, int, int], dtype: torch.dtype, architecture: int) -> None:
    B, N, A, D = shape
    kernel = partial(attention, tile=tile_of(dtype, D, architecture))
    judge(kernel, ops.attention, inputs((B, N, 3 * A * D), dtype=dtype), A)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", HEAD_DIMS)
@pytest.mark.parametrize(("B", "N", "A"), [(3, 1, 2), (2, 17, 3), (1, 97, 2), (1, 197, 1)])
@every_kind
def test_agrees_with_float64(B: int, N: int, A: int, D: int, dtype: torch.dtype, architecture: int) -> None:
    check((B, N, A, D), dtype, architecture)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_kind
def test_agrees_at_1025_tokens(dtype: torch.dtype, architecture: int) -> None:
    check((1, 1025, 1, 64), dtype, architecture)


@pytest.mark.parametrize("N", [64, 128, 129, 144, 160, 161, 577, 785, 1174, 1601, 1750])
@every_kind
def test_agrees_wherever_tiles_end(N: int, architecture: int) -> None:
    check((1, N, 1, 64), torch.float16, architecture)


@pytest.mark.parametrize("D", HEAD_DIMS)
@every_kind
def test_large_scores_neither_overflow_nor_vanish(D: int, architecture: int) -> None:
    (qkv,) = inputs((1, 97, 3 * D), dtype=torch.float16, mean=0.0)
    kernel = partial(attention, tile=tile_of(qkv.dtype, D, architecture))
    for sign in (1, -1):
        scaled = qkv.clone()
        scaled[..., : 2 * D] = scaled[..., : 2 * D].abs() * 6
        scaled[..., :D] *= sign
        judge(kernel, ops.attention, [scaled], 1)


@pytest.mark.parametrize("D", [64, 80])
@every_kind
def test_a_query_of_nan_leaves_the_other_rows_bit_equal(D: int, architecture: int) -> None:
    (qkv,) = inputs((1, 133, 3 * D), dtype=torch.float16)
    kernel = partial(attention, tile=tile_of(qkv.dtype, D, architecture))
    clean = kernel(qkv, 1)
    for row in (5, 132):
        dirty = qkv.clone()
        dirty[0, row, 0] = NAN
        got = kernel(dirty, 1)
        others = [n for n in range(133) if n != row]
        assert torch.equal(got[0, others], clean[0, others])
        assert got[0, row].isnan().all()


@pytest.mark.parametrize("D", [64, 96])
@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("N", [1, 133])
@every_kind
def test_images_and_heads_do_not_touch(N: int, value: float, D: int, architecture: int) -> None:
    (qkv,) = inputs((3, N, 6 * D), dtype=torch.bfloat16)
    kernel = partial(attention, tile=tile_of(qkv.dtype, D, architecture))
    clean = kernel(qkv, 2)
    dirty = qkv.clone()
    dirty[1] = value
    got = kernel(dirty, 2)
    assert torch.equal(got[0], clean[0])
    assert torch.equal(got[2], clean[2])
    dirty = qkv.clone()
    dirty.view(3, N, 3, 2, D)[:, :, :, 0] = value
    assert torch.equal(kernel(dirty, 2)[..., D:], clean[..., D:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", HEAD_DIMS)
@pytest.mark.parametrize(("B", "N", "A"), [(2, 1, 1), (1, 17, 2), (1, 97, 1)])
def test_gradients_agree_with_float64(B: int, N: int, A: int, D: int, dtype: torch.dtype) -> None:
    if N == 1 and dtype == torch.float32:
        pytest.skip("one key: the truth is 0, and float32 leaves what the CPU's product and sum round differently")
    judge_gradients(attention, ops.attention, inputs((B, N, 3 * A * D), dtype=dtype), A)


@pytest.mark.parametrize("D", HEAD_DIMS)
@every_kind
def test_gradients_agree_with_the_tiles_of_an_architecture(D: int, architecture: int) -> None:
    tile = tiles.of_architecture("attention_backward", case(torch.bfloat16, D), architecture)
    (grad,) = inputs((2, 133, D), dtype=torch.bfloat16, seed=1)

    def ours(qkv: Tensor) -> Tensor:
        return attention_backward(grad, qkv, 1, tile=tile)

    def eager(qkv: Tensor) -> Tensor:
        leaf = qkv.clone().requires_grad_()
        return torch.autograd.grad(ops.attention(leaf, 1), leaf, grad.to(qkv.dtype))[0]

    judge(ours, eager, inputs((2, 133, 3 * D), dtype=torch.bfloat16))


@pytest.mark.parametrize("D", HEAD_DIMS)
def test_gradients_where_all_scores_are_far_below_zero(D: int) -> None:
    (qkv,) = inputs((1, 37, 3 * D), dtype=torch.bfloat16, mean=0.0)
    qkv[..., : 2 * D] = qkv[..., : 2 * D].abs() * 6
    qkv[..., :D] *= -1
    judge_gradients(attention, ops.attention, [qkv], 1)


@pytest.mark.slow
def test_gradients_agree_at_1025_tokens() -> None:
    judge_gradients(attention, ops.attention, inputs((1, 1025, 192), dtype=torch.float16), 1)


def test_gradients_are_the_same_bits_twice_and_stay_in_their_image() -> None:
    (qkv,) = inputs((3, 70, 192), dtype=torch.float16)
    (grad,) = inputs((3, 70, 64), dtype=torch.float16, seed=1)
    with poisoned():
        once, again = (attention_backward(grad, qkv, 1) for _ in range(2))
        assert torch.equal(once, again)
        qkv[1], grad[1] = NAN, NAN
        dirty = attention_backward(grad, qkv, 1)
    assert torch.equal(dirty[[0, 2]], once[[0, 2]])


def test_a_gradient_of_another_shape_is_named() -> None:
    (qkv,) = inputs((1, 5, 192), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"attention: grad \[1, 5, 192\]: want \[1, 5, 64\]"):
        attention_backward(qkv, qkv, 1)


def test_nothing_launches_nothing() -> None:
    for shape in ((0, 5, 192), (2, 0, 192)):
        assert attention(torch.empty(shape, dtype=torch.float16, device=DEVICE), 1).shape == (*shape[:2], 64)


def strided(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


@pytest.mark.parametrize(
    ("change", "heads", "dropout", "message"),
    [
        (lambda x: x[0], 1, 0.0, r"qkv \[5, 192\]: want \['any', 'any', 'any'\]"),
        (lambda x: x, 2.0, 0.0, r"qkv \[2, 5, 192\] and 2.0 heads: want a width of 3 x heads x head dimension"),
        (lambda x: x, 3, 0.0, r"qkv \[2, 5, 192\] and 3 heads: want a width of 3 x heads x head dimension"),
        (lambda x: x, 0, 0.0, r"qkv \[2, 5, 192\] and 0 heads"),
        (lambda x: x, 4, 0.0, "head dimension 16: want one of 32, 64, 80, 96, 128; use segmenter.ops.attention"),
        (lambda x: x, 1, 0.1, "dropout 0.1: this kernel has none"),
        (lambda x: x.double(), 1, 0.0, "qkv is torch.float64; this op takes float16"),
        (strided, 1, 0.0, r"qkv has strides .*; call .contiguous\(\)"),
    ],
)
def test_wrong_input_is_named(change, heads: int, dropout: float, message: str) -> None:
    (qkv,) = inputs((2, 5, 192), dtype=torch.float16)
    with pytest.raises(ValueError, match=f"attention: {message}"):
        attention(change(qkv), heads, dropout)


def test_descriptors_need_an_aligned_address() -> None:
    x = torch.zeros(5 * 192 + 1, dtype=torch.float16, device=DEVICE)[1:].view(1, 5, 192)
    with pytest.raises(ValueError, match=r"attention: qkv starts at an address .*; call .clone\(\) first"):
        attention(x, 1, tile=tile_of(x.dtype, 64, 90))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_stride_along_an_axis_of_one_is_contiguous(architecture: int) -> None:
    (qkv,) = inputs((1, 5, 192), dtype=torch.float16)
    odd = torch.empty_strided((1, 5, 192), (7, 192, 1), dtype=qkv.dtype, device=qkv.device).copy_(qkv)
    tile = tile_of(qkv.dtype, 64, architecture)
    assert torch.equal(attention(odd, 1, tile=tile), attention(qkv, 1, tile=tile))


@pytest.mark.parametrize("N", [1, 64, 133])
@pytest.mark.parametrize("D", [64, 80])
@every_kind
def test_tiles_of_every_kind_and_rests_of_their_own_or_none(architecture: int, D: int, N: int) -> None:
    for kind, small in itertools.product(KINDS[1:], (0, 1)):
        tile = {**tile_of(torch.float16, D, architecture, kind), "SMALL": small}
        judge(partial(attention, tile=tile), ops.attention, inputs((2, N, 3 * D), dtype=torch.float16), 1)


def test_gradients_at_96_channels_are_no_product_of_warp_groups_on_hopper() -> None:
    tile = tiles.of_architecture("attention_backward", case(torch.float16, 96), 90)
    assert max(tile["BLOCK_M"], tile["BLOCK_N"]) <= 32  # 64 rows were wrong on an H200


@pytest.mark.parametrize("D", HEAD_DIMS)
def test_two_parts_make_a_head(D: int) -> None:
    assert sum(parts(D)) == D
    assert all(size & (size - 1) == 0 for size in parts(D))


def test_few_short_and_long_sequences_have_tiles_of_their_own() -> None:
    most = FEW // 2  # sequences of two programs each
    assert [case_of(torch.float16, 64, 128, n) for n in (1, most, most + 1)] == [
        "16-64_few",
        "16-64_few",
        "16-64_short",
    ]
    assert [case_of(torch.bfloat16, 80, N, 4096) for N in (SHORT, SHORT + 1, LONG - 1, LONG)] == [
        *("16-80_short", "16-80", "16-80", "16-80_long"),
    ]
    assert case_of(torch.float32, 64, LONG, 4096) == case_of(torch.float32, 64, 1, 1) == "32-64"


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_head_dimension_has_a_tile(architecture: int) -> None:
    for dtype, D, kind in itertools.product(DTYPES, HEAD_DIMS, KINDS):
        if kind and dtype == torch.float32:
            continue
        tile = tile_of(dtype, D, architecture, kind)
        # a rest of keys is taken in steps of BLOCK_T; a rest of queries is one tile of it
        assert tile["BLOCK_N"] % tile["BLOCK_T"] == 0
        assert tile["BLOCK_M"] % tile["BLOCK_T"] == 0
        assert tile in list(candidates(architecture, dtype, D))
        assert tiles.of_architecture("attention_backward", case(dtype, D), architecture)
