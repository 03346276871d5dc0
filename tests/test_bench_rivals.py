"""The official way, re-expressed: the same numbers as our network, in the memory layouts it is measured for."""

import numpy as np
import pytest
import torch

from segmenter import ops
from segmenter.checkpoint import save_model
from segmenter.errors import EngineError
from segmenter_bench.rivals import (
    Official,
    OfficialInference,
    channels_last_layout,
    classic_layout,
    explicit_attention,
    official_logits,
    official_ops,
)
from tests.networks import small_network


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A network, the same one over the official ops, and its checkpoint, for each decoder."""
    found = {}
    for decoder in ("mask", "linear"):
        folder = tmp_path_factory.mktemp(decoder)
        save_model(small_network(decoder), folder)
        found[decoder] = (small_network(decoder), Official(folder, threads=1), folder)
    return found


def test_explicit_attention_is_attention():
    torch.manual_seed(0)
    qkv = torch.randn(2, 37, 3 * 48, dtype=torch.float64)
    torch.testing.assert_close(explicit_attention(qkv, 3), ops.attention(qkv, 3), rtol=0, atol=1e-12)


def test_only_attention_differs_from_the_reference_ops():
    assert {name for name in ops.NAMES if getattr(official_ops(), name) is not getattr(ops, name)} == {"attention"}


@pytest.mark.parametrize("decoder", ["mask", "linear"])
@pytest.mark.parametrize("size", [(64, 64), (56, 72)])
@pytest.mark.parametrize("layout", [classic_layout, channels_last_layout])
@torch.inference_mode()
def test_logits_are_those_of_eager(models, decoder, size, layout):
    model, rival, _ = models[decoder]
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = model(image)
    found = official_logits(rival.model, image, layout)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_layouts_are_views_of_what_the_decoder_made():
    scores = torch.randn(1, 6, 5)
    for layout, strides in ((classic_layout, (5, 1, 15, 5)), (channels_last_layout, (30, 1, 15, 5))):
        masks = layout(scores, (2, 3))
        assert masks.shape == (1, 5, 2, 3)
        assert masks.stride() == strides
        assert masks.data_ptr() == scores.data_ptr()
        assert masks[0, 4, 1, 2] == scores[0, 5, 4]


@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_labels_are_uint8_and_those_of_eager(models, decoder):
    model, rival, folder = models[decoder]
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    from segmenter.preprocess import normalize

    with torch.inference_mode():
        expected = model.labels(normalize(images, model.config.preprocess)).numpy()
    for engine in (rival, OfficialInference(folder, threads=1)):
        labels = engine(images)
        assert labels.dtype == np.uint8
        assert (labels == expected).mean() >= 0.999
        assert len(np.unique(labels)) > 1


def test_the_official_inference_says_which_images_it_takes(models):
    with pytest.raises(EngineError, match="image 32x64: the official inference would cut it"):
        OfficialInference(models["mask"][2], threads=1)(np.zeros((1, 32, 64, 3), np.uint8))


def test_each_rival_says_what_it_does(models):
    folder = models["mask"][2]
    told = {
        Official(folder, 1).describe()["does"],
        Official(folder, 1, channels_last_layout).describe()["does"],
        OfficialInference(folder, 1).describe()["does"],
    }
    assert len(told) == 3
    assert all("every class at image resolution" in text for text in told)
