"""Importers of pretrained ViTs, each against the source's own architecture computed from its own layout."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from segmenter import config as configuration
from segmenter import load_model
from segmenter.backbone import load_backbone
from segmenter.checkpoint import save_model
from segmenter.errors import CheckpointError, ConfigError
from segmenter.patch_resize import resize_patches
from segmenter.pretrained import from_backbone, main
from segmenter_engines import open_session
from segmenter_engines.export import main as export
from tests.networks import CLASSES, small_network

C, HIDDEN, DEPTH, P, SIDE = 128, 512, 2, 16, 4
HEADS = C // 64


def timm_state(seed=0, *, distilled=False, scaled=False, registers="", class_position=True, depth=DEPTH):
    """Random ViT weights under timm's key names, large enough that each of them matters."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape, mean=0.0, scale=None):
        scale = shape[-1] ** -0.5 if scale is None else scale
        return torch.randn(*shape, generator=random) * scale + mean

    tokens = (1 + distilled) if class_position else 0
    state = {
        "cls_token": draw(1, 1, C),
        "pos_embed": draw(1, tokens + SIDE * SIDE, C),
        "patch_embed.proj.weight": draw(C, 3, P, P, scale=0.05),
        "patch_embed.proj.bias": draw(C),
        "norm.weight": draw(C, mean=1.0, scale=0.3),
        "norm.bias": draw(C),
        "head.weight": draw(10, C),
        "head.bias": draw(10),
    }
    if distilled:
        state |= {"dist_token": draw(1, 1, C), "head_dist.weight": draw(10, C), "head_dist.bias": draw(10)}
    if registers:
        state[registers] = draw(1, 3, C)
    for index in range(depth):
        block = f"blocks.{index}."
        for name, shape in (
            ("attn.qkv", (3 * C, C)),
            ("attn.proj", (C, C)),
            ("mlp.fc1", (HIDDEN, C)),
            ("mlp.fc2", (C, HIDDEN)),
        ):
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = draw(*shape), draw(shape[0], scale=0.2)
        for name in ("norm1", "norm2"):
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = draw(C, mean=1.0, scale=0.3), draw(C)
        if scaled:
            state |= {
                f"{block}ls1.gamma": draw(C, mean=0.5, scale=0.3),
                f"{block}ls2.gamma": draw(C, mean=0.5, scale=0.3),
            }
    return state


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


def save(state, path):
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def assert_features(path, wanted, image):
    """Every token to 1e-5 of the largest value."""
    with torch.inference_mode():
        found = from_backbone(path, CLASSES).eval().encoder(image)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


KINDS = {
    "augreg": {},
    "deit": {"distilled": True},
    "dinov2": {"scaled": True},
    "dinov2 with registers": {"scaled": True, "registers": "register_tokens"},
    "timm's dinov2 with registers": {"scaled": True, "registers": "reg_token", "class_position": False},
    "deit-3": {"scaled": True, "class_position": False},
}


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


def google_arrays(seed=0, heads=4, prefix=""):
    """Random ViT weights in the layout of Google's files."""
    random = np.random.default_rng(seed)
    D = C // heads

    def draw(*shape, mean=0.0, scale=0.1):
        return (random.standard_normal(shape) * scale + mean).astype(np.float32)

    arrays = {
        "cls": draw(1, 1, C),
        "embedding/kernel": draw(P, P, 3, C, scale=0.05),
        "embedding/bias": draw(C),
        "Transformer/posembed_input/pos_embedding": draw(1, 1 + SIDE * SIDE, C),
        "Transformer/encoder_norm/scale": draw(C, mean=1.0),
        "Transformer/encoder_norm/bias": draw(C),
        "pre_logits/kernel": draw(C, C),
        "pre_logits/bias": draw(C),
        "head/kernel": draw(C, 10),
        "head/bias": draw(10),
    }
    for index in range(DEPTH):
        block = f"Transformer/encoderblock_{index}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        for part in ("query", "key", "value"):
            arrays |= {f"{attention}{part}/kernel": draw(C, heads, D), f"{attention}{part}/bias": draw(heads, D)}
        arrays |= {f"{attention}out/kernel": draw(heads, D, C), f"{attention}out/bias": draw(C)}
        for name in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}{name}/scale": draw(C, mean=1.0), f"{block}{name}/bias": draw(C)}
        arrays |= {
            f"{block}MlpBlock_3/Dense_0/kernel": draw(C, HIDDEN),
            f"{block}MlpBlock_3/Dense_0/bias": draw(HIDDEN),
        }
        arrays |= {f"{block}MlpBlock_3/Dense_1/kernel": draw(HIDDEN, C), f"{block}MlpBlock_3/Dense_1/bias": draw(C)}
    return {prefix + key: value for key, value in arrays.items()}


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
        ("google", {"mode": "bicubic"}),
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


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_embed.periods": torch.ones(16)}, r"rotary positions \(RoPE\) \(rope_embed\.periods\)"),
        ({"blocks.1.attn.q_norm.weight": torch.ones(64)}, r"normalised queries and keys \(blocks\.1\.attn\.q_norm"),
        ({"blocks.0.mlp.w12.weight": torch.ones(4, 4)}, r"SwiGLU\) \(blocks\.0\.mlp\.w12\.weight\)"),
        ({"norm_pre.weight": torch.ones(C)}, "a LayerNorm before the blocks"),
        ({"blocks.0.attn.relative_position_bias_table": torch.ones(3, 3)}, "relative positions"),
        ({"blocks.0.attn.qkv.bias_mask": torch.ones(3 * C)}, "masked biases of keys"),
        ({"blocks.0.adapter.weight": torch.ones(3)}, r"blocks\.0\.adapter\.weight: no part of this network"),
        ({"decoder.head.weight": torch.ones(3)}, "a whole Segmenter"),
    ],
)
def test_what_the_network_cannot_express_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_backbone(save(timm_state() | change, tmp_path / "vit.safetensors"))


def test_dinov3_is_refused_whole(tmp_path):
    state = without(timm_state(scaled=True), "pos_embed")
    state |= {
        "rope_embed.periods": torch.ones(16),
        "storage_tokens": torch.zeros(1, 4, C),
        "mask_token": torch.ones(1, C),
    }
    with pytest.raises(CheckpointError, match=r"rotary positions.*cannot express.*AugReg, DeiT or DINOv2"):
        load_backbone(save(state, tmp_path / "dinov3.safetensors"))
    # timm's file keeps no periods: that there are no positions tells
    with pytest.raises(CheckpointError, match="no position embeddings"):
        load_backbone(save(without(state, "rope_embed.periods"), tmp_path / "timm.safetensors"))


def test_files_that_are_no_weights_are_named(tmp_path):
    path = tmp_path / "vit.npz"
    with pytest.raises(CheckpointError, match=r"vit\.npz: no such file"):
        load_backbone(path)
    path.write_bytes(b"PK and no more")
    with pytest.raises(CheckpointError, match=r"not a whole \.npz"):
        load_backbone(path)
    np.savez(path, cls=np.array([{"code": "runs"}], dtype=object))
    with pytest.raises(CheckpointError, match=r"not a whole \.npz of plain arrays"):
        load_backbone(path)
    np.savez(path, **google_arrays(), **{"conv_root/kernel": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="a convolutional stem"):
        load_backbone(path)
    np.savez(path, weights=np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match="not a ViT under timm's, DINOv2's or Google's"):
        load_backbone(path)
    np.savez_compressed(path, **google_arrays())
    whole = bytearray(path.read_bytes())
    begin = 30 + whole[26] + whole[28]  # behind the first file's header, name and extra field
    whole[begin] = 255  # no kind of block
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"not a whole \.npz"):
        load_backbone(path)
    torch.save({"model": {"code": print}}, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        load_backbone(tmp_path / "vit.pth")


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 2), (16, 16, 3, 128)])
@pytest.mark.parametrize("key", ["cls", "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel"])
def test_arrays_of_other_shapes_are_refused_in_one_line(tmp_path, key, shape):
    np.savez(tmp_path / "vit.npz", **(google_arrays() | {key: np.zeros(shape, np.float32)}))
    with pytest.raises(CheckpointError, match=r"vit\.npz: "):
        from_backbone(tmp_path / "vit.npz", CLASSES)


@pytest.mark.parametrize("lacking", ["blocks.1.attn.proj.bias", "norm.weight", "cls_token"])
def test_a_lacking_tensor_ends_the_command_after_the_table(tmp_path, capsys, lacking):
    path = save(without(timm_state(), lacking), tmp_path / "vit.safetensors")
    assert main([str(path), "--out", str(tmp_path / "init"), "--num-classes", "3"]) == 2
    printed = capsys.readouterr()
    assert "1 missing" in printed.out
    assert f"encoder.{lacking}: missing from the file" in printed.err
    assert not (tmp_path / "init").exists()


def test_the_table_tells_what_became_of_every_tensor(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    np.savez(tmp_path / "vit.npz", **google_arrays())
    command = [str(tmp_path / "vit.npz"), "--num-classes", "3", "--patch-size", "8", "--height", "48", "--width", "48"]
    assert main(command) == 0
    out = capsys.readouterr().out
    rows, last = {}, ""
    for line in filter(lambda line: line.startswith("│"), out.splitlines()):
        name, *cells = (cell.strip() for cell in line.split("│")[1:-1])
        if name.startswith("from "):
            rows[last].append(name)
        else:
            last, rows[name] = name, cells
    assert rows["encoder.patch_embed.proj.weight"] == [
        *("resized", "16 x 16 x 3 x 128 to 128 x 3 x 8 x 8", "1"),
        "from embedding/kernel",
    ]
    assert rows["encoder.pos_embed"][:2] == ["resized", "1 x 17 x 128 to 1 x 37 x 128"]
    assert rows["encoder.blocks.*.attn.proj.weight"] == [
        *("rearranged", "4 x 32 x 128 to 128 x 128", "2"),
        "from Transformer/encoderblock_*/MultiHeadDotProductAttention_1/out/kernel",
    ]
    assert rows["encoder.cls_token"] == ["as it is", "1 x 1 x 128", "1", "from cls"]
    assert rows["decoder.proj_dec.weight"][0] == "new"
    assert rows["head/kernel"][0] == "left out"
    assert "4 left out" in out
    assert "nothing written" in out
    # all of the network, and all of the file
    network = len(from_backbone(tmp_path / "vit.npz", CLASSES[:3]).state_dict())
    counts = dict(part.split(" ", 1)[::-1] for part in out.splitlines()[-2].split("; "))
    assert sum(int(count) for how, count in counts.items() if how != "left out") == network


def test_a_variant_of_the_paper_from_a_backbone(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(configuration._SIZES, "Ti", Size)
    path = save(timm_state(distilled=True), tmp_path / "vit.safetensors")
    model = from_backbone(path, CLASSES, variant_name="Seg-DeiT-Ti/16", image_size=(48, 64))
    encoder = model.config.encoder
    assert (encoder.norm_eps, encoder.drop_path, encoder.image_size) == (1e-5, 0.1, (48, 64))
    assert main([str(path), "--num-classes", "3", "--variant", "Seg-DeiT-Ti/16"]) == 0
    assert "LayerNorm eps is 1e-05 as in Seg-DeiT-Ti/16, the source's 1e-06" in capsys.readouterr().out
    assert model.config.decoder.kind == "linear"
    assert from_backbone(path, CLASSES, variant_name="Seg-DeiT-Ti-Mask/16").config.encoder.image_size == (512, 512)
    with pytest.raises(ConfigError, match=r"no encoder of Seg-Ti-Mask/16: distilled True for False"):
        from_backbone(path, CLASSES, variant_name="Seg-Ti-Mask/16")


class Size:
    """The encoder of these tests where the paper's smallest stands."""

    width, depth, heads = C, DEPTH, HEADS


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
