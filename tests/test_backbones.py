"""Importers of pretrained ViTs, each against the source's own architecture computed from its own layout."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmenter import load_model
from segmenter.checkpoint import save_model
from segmenter.pretrained import from_backbone, main
from segmenter_engines import open_session
from segmenter_engines.export import main as export
from tests.networks import CLASSES, small_network
from tests.vit_files import DEPTH, HEADS, KINDS, SIDE, C, P, google_arrays, save, timm_state


def timm_features(state, image, registers="", class_position=True):
    """The final tokens of a timm or DINOv2 ViT, float64, from its definition."""
    w = {key: value.double() for key, value in state.items()}
    x = F.unfold(image.double(), P, stride=P).transpose(1, 2) @ w["patch_embed.proj.weight"].flatten(1).t()
    x = x + w["patch_embed.proj.bias"]
    extra = [w[name].expand(len(image), -1, -1) for name in ("cls_token", "dist_token") if name in w]
    position = w["pos_embed"]
    x = torch.cat((*extra, x), 1) + position if class_position else torch.cat((*extra, x + position), 1)
    if registers:  # after the positions, between the class token and the patches
        x = torch.cat((x[:, : len(extra)], w[registers].expand(len(image), -1, -1), x[:, len(extra) :]), 1)
    for index in range(sum(key.endswith("fc1.weight") for key in w)):
        b = f"blocks.{index}."
        normed = norm(x, w[b + "norm1.weight"], w[b + "norm1.bias"])
        qkv = normed @ w[b + "attn.qkv.weight"].t() + w[b + "attn.qkv.bias"]
        heads = []
        for head in range(HEADS):
            q, k, v = (qkv[..., part * C + head * 64 : part * C + head * 64 + 64] for part in range(3))
            heads.append((q @ k.transpose(1, 2) / 8).softmax(-1) @ v)
        branch = torch.cat(heads, -1) @ w[b + "attn.proj.weight"].t() + w[b + "attn.proj.bias"]
        x = x + branch * w.get(b + "ls1.gamma", 1.0)
        hidden = (
            norm(x, w[b + "norm2.weight"], w[b + "norm2.bias"]) @ w[b + "mlp.fc1.weight"].t() + w[b + "mlp.fc1.bias"]
        )
        branch = gelu(hidden) @ w[b + "mlp.fc2.weight"].t() + w[b + "mlp.fc2.bias"]
        x = x + branch * w.get(b + "ls2.gamma", 1.0)
    return norm(x, w["norm.weight"], w["norm.bias"])


def norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def assert_features(path, wanted, image):
    """Every token to 1e-5 of the largest value."""
    with torch.inference_mode():
        found = from_backbone(path, CLASSES).eval().encoder(image)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_sources(tmp_path, kind):
    settings = KINDS[kind]
    state = timm_state(**settings)
    image = torch.randn(2, 3, SIDE * P, SIDE * P, generator=torch.Generator().manual_seed(1))
    seen = {key: settings[key] for key in ("registers", "class_position") if key in settings}
    assert_features(save(state, tmp_path / "vit.safetensors"), timm_features(state, image, **seen), image)
    # as the source's own authors publish them: a pickle, DeiT's below `model`
    torch.save({"model": state} if kind == "deit" else state, tmp_path / "vit.pth")
    assert_features(tmp_path / "vit.pth", timm_features(state, image, **seen), image)


@pytest.mark.parametrize("kind", ["dinov2 with registers", "timm's dinov2 with registers"])
def test_networks_with_registers_are_saved_and_resized(tmp_path, kind):
    state = timm_state(**KINDS[kind])
    path = save(state, tmp_path / "vit.safetensors")
    assert (
        main([str(path), "--out", str(tmp_path / "init"), "--num-classes", "3", "--height", "48", "--width", "32"]) == 0
    )
    model = load_model(tmp_path / "init")
    grid = state["pos_embed"][:, -SIDE * SIDE :].reshape(1, SIDE, SIDE, C).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, size=(3, 2), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.encoder.pos_embed[:, 4:], wanted)
    assert not model.encoder.pos_embed[:, 1:4].any()
    assert model(torch.randn(1, 3, 48, 32)).shape == (1, 3, 48, 32)


@pytest.mark.filterwarnings("ignore:.*verif")
def test_registers_go_through_an_engine(tmp_path):
    save_model(small_network(registers=3, layer_scale=True, position_resize="bicubic"), tmp_path / "ours")
    assert export([str(tmp_path / "ours"), "--out", str(tmp_path / "m.onnx"), "--height", "64", "--width", "96"]) == 0
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    labels = []
    for source, engine in ((tmp_path / "ours", "eager"), (tmp_path / "m.onnx", "onnxruntime")):
        with open_session(source, engine, threads=1) as session:
            labels.append(session(image))
    assert len(np.unique(labels[0])) > 1
    np.testing.assert_array_equal(*labels)


def google_features(arrays, image):
    """The final tokens of Google's ViT for images [B, H, W, 3], in float64 and in its own layouts, heads kept apart.

    GELU is exact, as it is in timm and in the official Segmenter, which both take these weights so; Flax approximates.
    """
    w = {key: torch.from_numpy(value).double() for key, value in arrays.items()}
    B, H, W, _ = image.shape
    patches = image.double().reshape(B, H // P, P, W // P, P, 3)
    x = torch.einsum("byuxvc,uvco->byxo", patches, w["embedding/kernel"]).reshape(B, -1, C) + w["embedding/bias"]
    x = torch.cat((w["cls"].expand(B, -1, -1), x), 1) + w["Transformer/posembed_input/pos_embedding"]
    for index in range(DEPTH):
        block = f"Transformer/encoderblock_{index}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        y = norm(x, w[block + "LayerNorm_0/scale"], w[block + "LayerNorm_0/bias"])
        q, k, v = (
            torch.einsum("bnc,cad->bnad", y, w[f"{attention}{part}/kernel"]) + w[f"{attention}{part}/bias"]
            for part in ("query", "key", "value")
        )
        weights = (torch.einsum("bnad,bmad->banm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = torch.einsum("banm,bmad->bnad", weights, v)
        x = x + torch.einsum("bnad,adc->bnc", mixed, w[attention + "out/kernel"]) + w[attention + "out/bias"]
        y = norm(x, w[block + "LayerNorm_2/scale"], w[block + "LayerNorm_2/bias"])
        y = gelu(y @ w[block + "MlpBlock_3/Dense_0/kernel"] + w[block + "MlpBlock_3/Dense_0/bias"])
        x = x + y @ w[block + "MlpBlock_3/Dense_1/kernel"] + w[block + "MlpBlock_3/Dense_1/bias"]
    return norm(x, w["Transformer/encoder_norm/scale"], w["Transformer/encoder_norm/bias"])


@pytest.mark.parametrize(("heads", "prefix"), [(2, ""), (4, "opt/target/")])
def test_googles_layout(tmp_path, heads, prefix):
    np.savez(tmp_path / "vit.npz", **google_arrays(heads=heads, prefix=prefix))
    image = torch.randn(2, SIDE * P, SIDE * P, 3, generator=torch.Generator().manual_seed(1))
    wanted = google_features(google_arrays(heads=heads), image)
    assert_features(tmp_path / "vit.npz", wanted, image.permute(0, 3, 1, 2))
    config = from_backbone(tmp_path / "vit.npz", CLASSES).config
    assert config.encoder.heads == heads
    assert config.preprocess.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("google", {"mode": "bilinear"}),  # timm 0.4.12, which the official requirements.txt pins: resize_pos_embed
        ("deit", {"mode": "bilinear"}),
        ("deit-3", {"mode": "bicubic", "antialias": True}),
        ("dinov2 with registers", {"mode": "bicubic", "antialias": True}),
    ],
)
def test_positions_come_in_as_the_sources_resize_them(tmp_path, kind, mode):
    if kind == "google":
        path, arrays = tmp_path / "vit.npz", google_arrays()
        np.savez(path, **arrays)
        position = torch.from_numpy(arrays["Transformer/posembed_input/pos_embedding"])
    else:
        state = timm_state(**KINDS[kind])
        path, position = save(state, tmp_path / "vit.safetensors"), state["pos_embed"]
    grid = position[:, -SIDE * SIDE :].reshape(1, SIDE, SIDE, C).permute(0, 3, 1, 2)
    for size in ((3, 2), (5, 7)):
        wanted = F.interpolate(grid, size=size, **mode, align_corners=False).flatten(2).transpose(1, 2)
        model = from_backbone(path, CLASSES, image_size=(size[0] * P, size[1] * P))
        torch.testing.assert_close(model.encoder.pos_embed[:, -size[0] * size[1] :], wanted)
    asked = from_backbone(path, CLASSES, image_size=(48, 32), position_resize="bilinear")
    wanted = F.interpolate(grid, size=(3, 2), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(asked.encoder.pos_embed[:, -6:], wanted)
    assert asked.config.encoder.position_resize == "bilinear"
