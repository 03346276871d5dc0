import copy
import types

import numpy as np
import pytest
import torch

from segmenter import load_model, ops
from segmenter.errors import ConfigError, ImageError
from segmenter.model import Segmenter
from segmenter.vit import resize_position
from segmenter.window import segment
from tests.networks import CLASSES, small_config, small_network

OFFICIAL = 1e-4  # largest error against the official implementation's own outputs


@pytest.fixture
def golden(shared):
    folder = shared / "golden" / "vit_mask16"
    with np.load(folder / "golden.npz") as file:
        values = {key: torch.from_numpy(file[key]) for key in file.files}
    return load_model(folder / "checkpoint.pth"), values


def worst(got, wanted):
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max())


@torch.inference_mode()
def test_official_logits_and_attention_maps(golden):
    model, values = golden
    assert worst(model(values["im0"]), values["logits0"]) < OFFICIAL
    assert worst(model(values["im1"]), values["logits1"]) < OFFICIAL
    assert worst(model.get_attention_map_enc(values["im0"], 1), values["attn_enc"]) < OFFICIAL
    assert worst(model.get_attention_map_dec(values["im0"], 0), values["attn_dec"]) < OFFICIAL


def test_official_sliding_window_and_multi_scale(golden):
    model, values = golden
    assert worst(segment(model, [(values["win_im"], False)], (100, 150), 64, 48), values["win_seg"]) < OFFICIAL
    views = [(values[f"ms_im{index}"], bool(values[f"ms_flip{index}"])) for index in range(6)]
    assert worst(segment(model, views, (100, 150), 64, 48, window_batch=4), values["ms_seg"]) < OFFICIAL


@pytest.mark.parametrize("size", [(64, 64), (70, 90), (1, 1), (33, 17), (16, 256)])
@pytest.mark.parametrize("decoder", ["mask", "linear"])
@torch.inference_mode()
def test_any_size_goes_in_and_labels_are_the_argmax_of_logits(decoder, size):
    model = small_network(decoder, distilled=decoder == "linear")
    image = torch.randn(2, 3, *size)
    logits = model(image)
    assert logits.shape == (2, len(CLASSES), *size)
    assert torch.equal(model.labels(image), logits.argmax(1).to(torch.uint8))


@torch.inference_mode()
def test_a_single_image_wants_a_batch_axis():
    model = small_network()
    for ask in (model, model.masks, model.labels):
        with pytest.raises(
            ImageError, match=r"image \[3, 32, 32\]: expected \[B, 3, H, W\]; a single image is image\[None\]"
        ):
            ask(torch.zeros(3, 32, 32))


def test_padding_is_zeros_on_the_right_and_at_the_bottom():
    model = small_network()
    image = torch.randn(1, 3, 60, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :60, :50] = image
    torch.testing.assert_close(model(image), model(padded)[..., :60, :50])


@torch.inference_mode()
def test_rows_of_a_batch_equal_the_images_alone():
    model = small_network()
    images = torch.randn(3, 3, 64, 80)
    torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_folding_layer_scale_keeps_the_logits():
    model = small_network(layer_scale=True)
    folded = copy.deepcopy(model)
    folded.fold_layer_scale()
    assert not any("ls1" in name for name in folded.state_dict())
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(folded(image), model(image), rtol=1e-4, atol=1e-5)
    for block in model.encoder.blocks:
        block.ls1 = block.ls2 = None
    assert (folded(image) - model(image)).abs().max() > 0.1  # the scales matter in this network


def test_training_and_eval_agree_without_dropout_and_gradients_reach_every_parameter():
    model = small_network(distilled=True, layer_scale=True, drop_path=0.0, dropout=0.0)
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        quiet = model(image)
    loud = model.train()(image)
    torch.testing.assert_close(loud, quiet, rtol=1e-4, atol=1e-5)
    loud.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_stochastic_depth_drops_whole_branches_of_samples():
    torch.manual_seed(0)
    model = Segmenter(small_config(drop_path=0.9)).train()
    tokens = torch.randn(64, 5, 64)
    block = model.encoder.blocks[-1]
    unchanged = (block(tokens) == tokens).flatten(1).all(1).float().mean()
    assert 0.6 < unchanged < 1.0  # 0.81 expected


def test_ops_are_exchanged_explicitly_and_all_of_them():
    calls = []
    module = types.ModuleType("recording")
    for name in ops.NAMES:

        def call(*args, name=name, **kwargs):
            calls.append(name)
            return getattr(ops, name)(*args, **kwargs)

        setattr(module, name, call)
    image = torch.randn(1, 3, 64, 64)
    for positions, unused in (("learnt", {"rotate"}), ("rotary", set())):
        calls.clear()
        reference = small_network(positions=positions)
        model = Segmenter(reference.config, ops=module).eval()
        model.load_state_dict(reference.state_dict())
        with torch.inference_mode():
            assert torch.equal(model.labels(image), reference.labels(image))
        assert set(calls) == set(ops.NAMES) - unused
    del module.rotate, module.layernorm
    calls.clear()
    with torch.inference_mode():
        assert Segmenter(small_config(), ops=module).eval().labels(image).shape == (1, 64, 64)
    assert set(calls) == set(ops.NAMES) - {"rotate", "layernorm"}
    with pytest.raises(ConfigError, match="lacks rotate"):
        Segmenter(small_config(positions="rotary"), ops=module)
    del module.attention
    with pytest.raises(ConfigError, match="lacks attention;"):
        Segmenter(small_config(), ops=module)


def test_attention_maps_are_probabilities_and_bad_layers_are_named():
    model = small_network()
    maps = model.get_attention_map_dec(torch.randn(1, 3, 64, 64), 0)
    assert maps.shape == (1, 1, 16 + len(CLASSES), 16 + len(CLASSES))
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 1, 16 + len(CLASSES)))
    with pytest.raises(ConfigError, match=r"layer 2.*0 to 1"):
        model.get_attention_map_enc(torch.randn(1, 3, 64, 64), 2)
    with pytest.raises(ConfigError, match="linear decoder"):
        small_network("linear").get_attention_map_dec(torch.randn(1, 3, 64, 64), 0)


def test_position_embeddings_keep_their_corners_and_extra_tokens():
    position = torch.randn(1, 2 + 16, 8)
    resized = resize_position(position, (4, 4), (8, 8), 2, "bilinear")
    assert torch.equal(resized[:, :2], position[:, :2])
    torch.testing.assert_close(resized[0, 2], position[0, 2])  # outside the outermost centres the value is constant
    torch.testing.assert_close(resized[0, -1], position[0, -1])
