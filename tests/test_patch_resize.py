"""Patch embeddings for another patch size: the products of kernels with patches are kept."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from segmenter.patch_resize import resize_patches
from segmenter.pretrained import from_backbone
from tests.networks import CLASSES
from tests.vit_files import SIDE, save, timm_state


def rows_of_a_resize(old, new):
    """Float64 [new, old] of bilinear interpolation, its triangle widened where it shrinks, from the definition."""
    stretch = max(old / new, 1.0)
    weights = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new
        for source in range(old):
            weights[row, source] = max(0.0, 1 - abs(source + 0.5 - centre) / stretch)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("old", "new"), [(16, 8), (16, 14), (14, 16), (8, 16)])
def test_patch_kernels_keep_their_products_with_patches(old, new):
    kernel = torch.randn(2, 3, old, old, generator=torch.Generator().manual_seed(0))
    found = resize_patches(kernel, new).double().numpy()
    rows = rows_of_a_resize(old, new)
    whole = np.kron(rows, rows)  # [new new, old old]
    for channel in range(3):
        wanted = np.linalg.lstsq(whole.T, kernel[0, channel].double().flatten().numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[0, channel].flatten(), wanted, atol=1e-5 * np.abs(wanted).max())
    if new >= old:
        patch = np.random.default_rng(1).standard_normal((old, old))
        before = (kernel[1, 2].double().numpy() * patch).sum()
        np.testing.assert_allclose((found[1, 2] * (rows @ patch @ rows.T)).sum(), before, rtol=1e-4)


def test_bilinear_patches_are_the_image_resized():
    kernel = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    torch.testing.assert_close(resize_patches(kernel, 2, "bilinear")[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))


def test_a_changed_patch_size_keeps_the_grid(tmp_path):
    path = save(timm_state(), tmp_path / "vit.safetensors")
    for method in ("pi", "bilinear"):
        model = from_backbone(path, CLASSES, patch_size=8, patch_resize=method)
        assert model.config.encoder.image_size == (SIDE * 8, SIDE * 8)
        state = load_file(path)
        torch.testing.assert_close(model.encoder.pos_embed, state["pos_embed"])
        torch.testing.assert_close(
            model.encoder.patch_embed.proj.weight, resize_patches(state["patch_embed.proj.weight"], 8, method)
        )
