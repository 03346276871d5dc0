"""DINOv3's ViTs, from three publishers' files, against their architecture computed in float64 from Meta's names."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from segmenter import load_model
from segmenter.attention import attention_maps
from segmenter.backbone import load_backbone
from segmenter.config import SATELLITE, EncoderConfig
from segmenter.errors import CheckpointError, ConfigError
from segmenter.pretrained import from_backbone, main
from segmenter.rotary import Rotary
from tests.dinov3_files import NAMINGS, TOKENS, exact_periods, hugging_face_names, meta_state, timm_names
from tests.networks import CLASSES
from tests.vit_files import DEPTH, HEADS, C, P, save, without

GRIDS = ((4, 4), (3, 7), (1, 5))


def dinov3_features(state, image, periods):
    """The final tokens of a DINOv3 ViT, and each layer's attention, float64, from Meta's names and the definition."""
    w = {key: value.double() for key, value in state.items()}
    B, _, H, W = image.shape
    h, w_ = H // P, W // P
    patches = F.unfold(image.double(), P, stride=P).transpose(1, 2) @ w["patch_embed.proj.weight"].flatten(1).t()
    x = torch.cat(
        (
            w["cls_token"].expand(B, -1, -1),
            w["storage_tokens"].expand(B, -1, -1),
            patches + w["patch_embed.proj.bias"],
        ),
        1,
    )
    # channel j of a head and channel j + D / 2 are one complex number, which a patch's place turns
    turn = torch.ones(x.shape[1], 32, dtype=torch.complex128)
    for row in range(h):
        for column in range(w_):
            places = (2 * (row + 0.5) / h - 1, 2 * (column + 0.5) / w_ - 1)
            angles = [2 * math.pi * place / period for place in places for period in periods.tolist()]
            turn[1 + TOKENS + row * w_ + column] = torch.polar(
                torch.ones(32, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
            )

    def turned(part):
        number = torch.complex(part[..., :32].contiguous(), part[..., 32:].contiguous()) * turn
        return torch.cat((number.real, number.imag), -1)

    attentions = []
    for index in range(DEPTH):
        b = f"blocks.{index}."
        normed = norm(x, w[b + "norm1.weight"], w[b + "norm1.bias"])
        qkv = normed @ w[b + "attn.qkv.weight"].t() + w[b + "attn.qkv.bias"] * w[b + "attn.qkv.bias_mask"]
        heads, probabilities = [], []
        for head in range(HEADS):
            q, k, v = (qkv[..., part * C + head * 64 : part * C + head * 64 + 64] for part in range(3))
            probabilities.append((turned(q) @ turned(k).transpose(1, 2) / 8).softmax(-1))
            heads.append(probabilities[-1] @ v)
        attentions.append(torch.stack(probabilities, 1))
        branch = torch.cat(heads, -1) @ w[b + "attn.proj.weight"].t() + w[b + "attn.proj.bias"]
        x = x + branch * w[b + "ls1.gamma"]
        hidden = norm(x, w[b + "norm2.weight"], w[b + "norm2.bias"]) @ w[b + "mlp.fc1.weight"].t()
        hidden = hidden + w[b + "mlp.fc1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + (hidden @ w[b + "mlp.fc2.weight"].t() + w[b + "mlp.fc2.bias"]) * w[b + "ls2.gamma"]
    return norm(x, w["norm.weight"], w["norm.bias"]), attentions


def norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def image_of(grid):
    return torch.randn(2, 3, grid[0] * P, grid[1] * P, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("naming", NAMINGS)
def test_features_are_the_sources(tmp_path, naming):
    state = meta_state()
    path = save(NAMINGS[naming](state), tmp_path / "vit.safetensors")
    if "without" in naming:
        state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith("qkv.bias")}
    periods = state["rope_embed.periods"] if naming == "meta" else exact_periods()
    model = from_backbone(path, CLASSES).eval()
    encoder = model.config.encoder
    assert (encoder.positions, encoder.registers, encoder.heads, encoder.norm_eps) == ("rotary", TOKENS, HEADS, 1e-5)
    for grid in GRIDS:
        image = image_of(grid)
        wanted, attentions = dinov3_features(state, image, periods)
        with torch.inference_mode():
            found = model.encoder(image)
            assert found.shape == wanted.shape
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
            for layer, probabilities in enumerate(attentions):
                torch.testing.assert_close(
                    model.get_attention_map_enc(image, layer).double(), probabilities, rtol=1e-3, atol=1e-5
                )
            token = 1 + TOKENS  # the first patch
            maps = attention_maps(model, image[:1], "encoder", token)
        wanted = torch.stack(attentions)[:, 0, :, token, 1 + TOKENS :].unflatten(2, grid)
        torch.testing.assert_close(maps.double(), wanted, rtol=1e-3, atol=1e-5)


def test_a_pickle_and_a_training_states_prefix(tmp_path):
    state = meta_state()
    torch.save({f"backbone.{name}": value for name, value in state.items()}, tmp_path / "vit.pth")
    image = image_of((2, 3))
    wanted, _ = dinov3_features(state, image, state["rope_embed.periods"])
    with torch.inference_mode():
        found = from_backbone(tmp_path / "vit.pth", CLASSES).eval().encoder(image)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_hugging_faces_own_network(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is compared by hand")
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        hidden_size=C, intermediate_size=2 * C, num_hidden_layers=2, num_attention_heads=HEADS, num_register_tokens=3
    )
    source = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
    source.save_pretrained(tmp_path)
    image = image_of((3, 7))
    with torch.inference_mode():
        wanted = source(image).last_hidden_state
        found = from_backbone(tmp_path / "model.safetensors", CLASSES).eval().encoder(image)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def fates(path):
    told = []
    from_backbone(path, CLASSES, report=told.append)
    return {fate.name or fate.key: (fate.how, fate.key) for fate in told[0].fates}


def test_the_table_tells_what_became_of_every_tensor(tmp_path):
    state, path = meta_state(), tmp_path / "vit.safetensors"
    found = fates(save(state, path))
    bias = "blocks.0.attn.qkv.bias"
    assert found[f"encoder.{bias}"] == ("masked", f"{bias}, {bias}_mask")
    assert found["encoder.rotary.periods"] == ("as it is", "rope_embed.periods")
    assert found["encoder.register_tokens"] == ("as it is", "storage_tokens")
    assert found["mask_token"] == ("left out", "mask_token")
    found = fates(save(timm_names(state), path))
    assert found[f"encoder.{bias}"] == ("rearranged", "blocks.0.attn.q_bias, blocks.0.attn.v_bias")
    assert found["encoder.rotary.periods"] == ("by definition", "")
    assert found["encoder.blocks.1.ls2.gamma"] == ("as it is", "blocks.1.gamma_2")
    found = fates(save(hugging_face_names(state, biases=False), path))
    parts = ", ".join(f"layer.1.attention.{letter}_proj.weight" for letter in "qkv")
    assert found["encoder.blocks.1.attn.qkv.weight"] == ("rearranged", parts)
    assert found[f"encoder.{bias}"] == ("by definition", "")
    assert found["encoder.patch_embed.proj.bias"] == ("as it is", "embeddings.patch_embeddings.bias")
    assert found["embeddings.mask_token"] == ("left out", "embeddings.mask_token")


def test_the_command_and_its_options(tmp_path, capsys):
    path = save(meta_state(), tmp_path / "vit.safetensors")
    command = [str(path), "--num-classes", "3", "--out", str(tmp_path / "init")]
    assert main(command) == 0
    assert "images of 512x512 in patches of 16" in capsys.readouterr().out
    assert load_model(tmp_path / "init").encoder.pos_embed is None
    assert main([*command, "--height", "50", "--width", "90", "--patch-size", "8", "--blocks", "1"]) == 0
    printed = capsys.readouterr().out
    assert "resized" in printed
    assert "by definition" not in printed
    config = load_model(tmp_path / "init").config.encoder
    assert (config.image_size, config.patch_size, config.depth) == ((56, 96), 8, 1)
    for wrong, message in (
        (["--position-resize", "bicubic"], "has rotary positions, which fit any size; leave it out"),
        (["--variant", "Seg-S/16"], "positions rotary for learnt"),
        (["--blocks", "3"], "first 3 blocks of 2"),
    ):
        assert main([*command, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_weights_of_satellite_images(tmp_path, capsys):
    state = meta_state() | {"local_cls_norm.weight": torch.ones(C), "local_cls_norm.bias": torch.zeros(C)}
    path = save(state, tmp_path / "vit.safetensors")
    assert main([str(path), "--num-classes", "3"]) == 0
    assert "pass --normalization satellite" in capsys.readouterr().out
    assert main([str(path), "--num-classes", "3", "--normalization", "satellite"]) == 0
    assert "pass --normalization" not in capsys.readouterr().out
    assert from_backbone(path, CLASSES, normalization="satellite").config.preprocess == SATELLITE


@pytest.mark.parametrize(
    ("naming", "change", "message"),
    [
        ("meta", {"blocks.0.mlp.w1.weight": torch.ones(3)}, r"SwiGLU\) \(blocks\.0\.mlp\.w1\.weight\)"),
        ("timm", {"blocks.0.mlp.fc1_g.weight": torch.ones(3)}, r"SwiGLU\) \(blocks\.0\.mlp\.fc1_g\.weight\)"),
        ("hugging face", {"layer.0.mlp.gate_proj.weight": torch.ones(3)}, r"SwiGLU\) \(layer\.0\.mlp\.gate_proj\."),
        ("meta", {"cls_norm.weight": torch.ones(C)}, "a norm of the class token's own"),
        ("meta", {"pos_embed": torch.ones(1, 17, C)}, r"of another kind than DINOv3's \(rope_embed\.periods\)"),
        ("timm", {"rope.freqs": torch.ones(2, 2, 32)}, r"of another kind than DINOv3's \(rope\.freqs\)"),
        ("timm", {"blocks.0.adapter": torch.ones(3)}, r"blocks\.0\.adapter: no part of this network"),
        ("meta", {"rope_embed.periods": torch.zeros(16)}, "a period that is not above 0"),
        ("meta", {"rope_embed.periods": torch.full((16,), torch.nan)}, "a period that is not above 0"),
        ("meta", {"rope_embed.periods": torch.ones(15)}, "wanted a multiple of 60, the channels of a head"),
        ("meta", {"rope_embed.periods": torch.ones(4, 4)}, r"not a ViT.*\(4, 4\)"),
        ("meta", {"rope_embed.periods": torch.tensor(2.0)}, "not a ViT"),
        ("meta", {"blocks.1.attn.qkv.bias_mask": torch.ones(5)}, "do not fit together"),
        ("timm", {"blocks.1.attn.q_bias": torch.ones(2, 2)}, "do not fit together"),
        ("hugging face", {"layer.1.attention.v_proj.weight": torch.tensor(1.0)}, "do not fit together"),
    ],
)
def test_what_the_network_cannot_express_is_refused_by_name(tmp_path, naming, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_backbone(save(NAMINGS[naming](meta_state()) | change, tmp_path / "vit.safetensors"))


@pytest.mark.parametrize(
    ("naming", "lacking", "message"),
    [
        ("meta", "blocks.1.attn.qkv.bias", r"blocks\.1\.attn\.qkv\.bias_mask: parts of a projection whose other parts"),
        ("timm", "blocks.1.attn.v_bias", r"blocks\.1\.attn\.q_bias: parts of a projection"),
        ("hugging face", "layer.0.attention.k_proj.weight", r"q_proj\.weight, .*v_proj\.weight: parts of a projection"),
        ("hugging face", "layer.1.mlp.up_proj.bias", r"encoder\.blocks\.1\.mlp\.fc1\.bias: missing from the file"),
        ("timm", "norm.weight", r"encoder\.norm\.weight: missing from the file"),
        ("meta", "cls_token", r"encoder\.cls_token: missing from the file"),
        # without them nothing tells what these positions are
        ("timm", "reg_token", "has no position embeddings"),
    ],
)
def test_a_lacking_tensor_is_named(tmp_path, naming, lacking, message):
    path = save(without(NAMINGS[naming](meta_state()), lacking), tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match=message):
        from_backbone(path, CLASSES)


def test_a_block_without_biases_that_others_have_lacks_them(tmp_path):
    state = hugging_face_names(meta_state())
    biases = [f"layer.1.attention.{letter}_proj.bias" for letter in "qv"]
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.1\.attn\.qkv\.bias: missing from the file"):
        from_backbone(save(without(state, *biases), tmp_path / "vit.safetensors"), CLASSES)


def test_no_registers_are_none(tmp_path):
    path = tmp_path / "vit.safetensors"
    # Hugging Face stores an empty tensor of them
    empty = {"embeddings.register_tokens": torch.zeros(1, 0, C)}
    for state in (without(meta_state(), "storage_tokens"), hugging_face_names(meta_state()) | empty):
        assert from_backbone(save(state, path), CLASSES).config.encoder.registers == 0


def test_a_checkpoint_keeps_the_files_periods(tmp_path):
    state = meta_state()
    path = save(state, tmp_path / "vit.safetensors")
    assert main([str(path), "--num-classes", "3", "--out", str(tmp_path / "init")]) == 0
    kept = load_file(tmp_path / "init" / "model.safetensors")["encoder.rotary.periods"]
    assert torch.equal(kept, state["rope_embed.periods"])
    assert not torch.equal(kept, exact_periods())
    assert torch.equal(load_model(tmp_path / "init").encoder.rotary.periods, kept)
    # of a checkpoint from before there were rotary positions nothing is said, and nothing changes
    file = tmp_path / "init" / "config.json"
    config = json.loads(file.read_text())
    assert config["encoder"].pop("positions") == "rotary"
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"encoder\.pos_embed is missing"):
        load_model(tmp_path / "init")


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_angles_lose_nothing_in_16_bits_and_on_large_grids(dtype, digits):
    """Every cosine and sine is the float64 one, rounded to the type: half a unit of its last place, and float32's."""
    rotary = Rotary(64, 1).to(dtype)
    assert rotary.periods.dtype == torch.float32
    h, w = 3, 4096
    y, x = (2 * (torch.arange(side, dtype=torch.float64) + 0.5) / side - 1 for side in (h, w))
    periods = 100 ** (torch.arange(16, dtype=torch.float64) / 16)
    angles = torch.zeros(1 + h * w, 32, dtype=torch.float64)
    angles[1:, :16] = (2 * math.pi * y[:, None] / periods).repeat_interleave(w, 0)
    angles[1:, 16:] = (2 * math.pi * x[:, None] / periods).repeat(h, 1)
    for found, truth in zip(rotary(h, w, dtype), (angles.cos(), angles.sin()), strict=True):
        assert found.dtype == dtype
        assert (found.double() - truth).abs().max() <= 2.0**-digits / 2 + 4e-6
    # no two patches of a row are turned alike, as they would be by angles in this type
    cos, sin = rotary(1, w, torch.float32)
    assert len(torch.cat((cos, sin), 1).unique(dim=0)) == 1 + w


def test_extra_tokens_are_left_alone():
    cos, sin = Rotary(64, 5)(2, 3, torch.float32)
    assert cos.shape == sin.shape == (5 + 6, 32)
    assert torch.equal(cos[:5], torch.ones(5, 32))
    assert torch.equal(sin[:5], torch.zeros(5, 32))
    assert sin[5:].abs().amax(1).min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "absolute"}, "encoder positions 'absolute': wanted 'learnt' or 'rotary'"),
        ({"positions": "rotary", "width": 12, "heads": 2}, "want a multiple of 4 channels a head, not 6"),
    ],
)
def test_impossible_positions_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**change)
