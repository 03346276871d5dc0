import pytest
import torch
import torch.nn.functional as F

from segmenter import ops


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


@pytest.mark.parametrize("tokens", [1, 97, 197])
def test_attention_is_softmax_of_scaled_products_on_the_official_packing(tokens):
    heads, D = 3, 8
    qkv = draw(2, tokens, 3 * heads * D)
    q, k, v = qkv.reshape(2, tokens, 3, heads, D).permute(2, 0, 3, 1, 4)
    weights = torch.exp(q @ k.mT / D**0.5)
    truth = (weights / weights.sum(-1, keepdim=True)) @ v
    torch.testing.assert_close(ops.attention(qkv, heads), truth.transpose(1, 2).reshape(2, tokens, heads * D))


def test_rotate_turns_pairs_of_queries_and_keys_and_leaves_values():
    heads, D, tokens = 2, 6, 4
    qkv, angles = draw(2, tokens, 3 * heads * D), draw(tokens, D // 2, seed=1)
    found = ops.rotate(qkv, angles.cos(), angles.sin(), heads).reshape(2, tokens, 3, heads, D)
    parts = qkv.reshape(2, tokens, 3, heads, D)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, None]
    turned = torch.complex(*parts[:, :, :2].split(D // 2, dim=-1)) * turn
    torch.testing.assert_close(found[:, :, :2], torch.cat((turned.real, turned.imag), -1))
    assert torch.equal(found[:, :, 2], parts[:, :, 2])
    # in 16 bits by float32 tables: rounded once, at the end
    half = ops.rotate(qkv.half(), angles.float().cos(), angles.float().sin(), heads)
    wanted = ops.rotate(qkv.half().float(), angles.float().cos(), angles.float().sin(), heads)
    assert torch.equal(half, wanted.half())


def test_patch_embed_projects_patches_row_by_row_behind_the_extra_tokens():
    P, C = 4, 5
    image, weight, bias = draw(1, 3, 8, 12), draw(C, 3, P, P, seed=1), draw(C, seed=2)
    position, tokens = draw(1, 8, C, seed=3), draw(1, 2, C, seed=4)
    out = ops.patch_embed(image, weight, bias, position, tokens)
    assert out.shape == (1, 2 + 6, C)
    torch.testing.assert_close(out[:, :2], tokens + position[:, :2])
    patch = image[0, :, 4:8, 8:12]  # second row, third column: token 5 of the grid
    torch.testing.assert_close(out[0, 2 + 5], (weight * patch).sum((1, 2, 3)) + bias + position[0, 2 + 5])


def test_layernorm_normalises_rows():
    x, w, b = draw(2, 7, 10), draw(10, seed=2), draw(10, seed=3)
    centred = x - x.mean(-1, keepdim=True)
    wanted = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w + b
    torch.testing.assert_close(ops.layernorm(x, w, b, 1e-6), wanted)


def test_add_layernorm_returns_the_sum_and_its_norm():
    x, r, w, b = draw(2, 7, 10), draw(2, 7, 10, seed=1), draw(10, seed=2), draw(10, seed=3)
    total, normed = ops.add_layernorm(x, r, w, b, 1e-6)
    torch.testing.assert_close(total, x + r)
    centred = total - total.mean(-1, keepdim=True)
    torch.testing.assert_close(normed, centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w + b)


def test_linears():
    x, w, b, r = draw(2, 3, 4), draw(5, 4, seed=1), draw(5, seed=2), draw(2, 3, 5, seed=3)
    z = x @ w.mT + b
    torch.testing.assert_close(ops.linear_gelu(x, w, b), z * 0.5 * (1 + torch.erf(z / 2**0.5)))
    torch.testing.assert_close(ops.linear_residual(x, w, b, r), z + r)


def test_mask_scores_are_normed_cosines():
    patches, classes, w, b = draw(2, 9, 6), draw(2, 4, 6, seed=1), draw(4, seed=2), draw(4, seed=3)
    cosine = F.cosine_similarity(patches[:, :, None], classes[:, None], dim=-1)
    torch.testing.assert_close(
        ops.mask_scores(patches, classes, w, b, 1e-5), F.layer_norm(cosine, (4,), w, b, 1e-5), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mask_scores_do_not_overflow_in_16_bits(dtype):
    patches, classes = draw(1, 9, 768) * 40, draw(1, 4, 768, seed=1) * 40  # sums of squares near 2.5 million
    w, b = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    got = ops.mask_scores(*(tensor.to(dtype) for tensor in (patches, classes, w, b)), 1e-5)
    truth = ops.mask_scores(patches.to(dtype).double(), classes.to(dtype).double(), w, b, 1e-5)
    assert got.isfinite().all()
    assert (got.double() - truth).abs().max() < 40 * torch.finfo(dtype).eps * truth.abs().max()


def test_upsample_argmax_takes_the_first_of_equals_and_crops_the_top_left():
    masks = torch.zeros(1, 3, 2, 2)
    assert (ops.upsample_argmax(masks, (8, 8)) == 0).all()
    masks[0, 2, :, 1] = 1.0
    labels = ops.upsample_argmax(masks, (8, 8), (8, 6))
    assert labels.shape == (1, 8, 6)
    assert labels.dtype == torch.uint8
    assert labels[0, 0].tolist() == [0, 0, 2, 2, 2, 2]
    assert ops.upsample_argmax(torch.zeros(1, 300, 2, 2), (4, 4)).dtype == torch.int16
