"""Files of pretrained ViTs: what is refused and how, and what the importing command tells."""

import re

import numpy as np
import pytest
import torch

from segmenter import config as configuration
from segmenter.backbone import load_backbone
from segmenter.errors import CheckpointError, ConfigError
from segmenter.pretrained import from_backbone, main
from tests.networks import CLASSES
from tests.vit_files import DEPTH, HEADS, C, google_arrays, save, timm_state, without


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope.freqs": torch.ones(2, 32)}, r"rotary positions \(RoPE\) of another kind than DINOv3's \(rope\.freqs\)"),
        ({"blocks.1.attn.q_norm.weight": torch.ones(64)}, r"normalised queries and keys \(blocks\.1\.attn\.q_norm"),
        ({"blocks.0.mlp.w12.weight": torch.ones(4, 4)}, r"SwiGLU\) \(blocks\.0\.mlp\.w12\.weight\)"),
        ({"norm_pre.weight": torch.ones(C)}, "a LayerNorm before the blocks"),
        ({"blocks.0.attn.relative_position_bias_table": torch.ones(3, 3)}, "relative positions"),
        ({"blocks.0.attn.qkv.bias_mask": torch.ones(3 * C)}, r"attn\.qkv\.bias_mask: no part of this network"),
        ({"blocks.0.adapter.weight": torch.ones(3)}, r"blocks\.0\.adapter\.weight: no part of this network"),
        ({"decoder.head.weight": torch.ones(3)}, "a whole Segmenter"),
    ],
)
def test_what_the_network_cannot_express_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_backbone(save(timm_state() | change, tmp_path / "vit.safetensors"))


def test_a_vit_whose_positions_are_not_in_the_file_is_refused(tmp_path):
    # timm's ViTs with rotary positions other than DINOv3's, which its code alone knows
    state = {re.sub(r"ls([12])\.gamma", r"gamma_\1", name): value for name, value in timm_state(scaled=True).items()}
    with pytest.raises(CheckpointError, match=r"no position embeddings.*cannot express.*DINOv2, or DINOv3's S, B or L"):
        load_backbone(save(without(state, "pos_embed"), tmp_path / "timm.safetensors"))


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
    with pytest.raises(CheckpointError, match="not a ViT under timm's, DINOv2's, DINOv3's or Google's"):
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
