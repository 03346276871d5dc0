"""Back to the official format, held against the official implementation's own files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from segmenter import load_model
from segmenter.checkpoint import save_model
from segmenter.errors import CheckpointError
from segmenter.export_official import main
from segmenter.model import Segmenter
from segmenter.pretrained import main as pretrained
from tests.networks import CLASSES, small_config

OFFICIAL = {"mlp_width": 256, "heads": 1}  # what the official code makes of width 64


def official_network(decoder="mask", **encoder):
    """A small network of the shapes the official code makes, in eval mode."""
    config = small_config(decoder, **(OFFICIAL | encoder))
    torch.manual_seed(0)
    model = Segmenter(replace(config, decoder=replace(config.decoder, mlp_width=256))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def official_state(path):
    return torch.load(path / "checkpoint.pth", weights_only=True)["model"]


def test_the_golden_checkpoint_comes_back_bit_for_bit(shared, tmp_path, capsys):
    golden = shared / "golden" / "vit_mask16"
    assert pretrained([str(golden), "--out", str(tmp_path / "ours")]) == 0
    assert "pass --window 64 --stride 48 to predict, evaluate and export-official" in capsys.readouterr().out
    command = [str(tmp_path / "ours"), "--out", str(tmp_path / "back"), "--heads-of", str(golden / "checkpoint.pth")]
    assert main([*command, "--stride", "48", "--dataset", "ade20k"]) == 0
    was, now = official_state(golden), official_state(tmp_path / "back")
    assert was.keys() == now.keys()
    for name, tensor in was.items():
        assert tensor.dtype == now[name].dtype
        assert torch.equal(tensor, now[name]), name
    # as the official code reads it: all of the network's arguments, and those of evaluation
    with_tuples = yaml.load((golden / "variant.yml").read_text(), Loader=yaml.FullLoader)
    again = yaml.load((tmp_path / "back" / "variant.yml").read_text(), Loader=yaml.FullLoader)
    with_tuples["net_kwargs"]["image_size"] = list(with_tuples["net_kwargs"]["image_size"])
    for part in ("net_kwargs", "inference_kwargs"):
        assert again[part] == with_tuples[part]
    assert again["dataset_kwargs"].items() <= with_tuples["dataset_kwargs"].items()
    model = load_model(tmp_path / "back")
    assert model.config == load_model(golden).config
    values = np.load(golden / "golden.npz")
    with torch.inference_mode():
        logits = model(torch.from_numpy(values["im0"]))
    assert (logits - torch.from_numpy(values["logits0"])).abs().max() < 1e-4


@pytest.mark.parametrize(("decoder", "kind"), [("mask", {}), ("linear", {}), ("linear", {"distilled": True})])
def test_any_network_comes_back_bit_for_bit(tmp_path, decoder, kind):
    model = official_network(decoder, **kind)
    save_model(model, tmp_path / "ours")
    assert main([str(tmp_path / "ours"), "--out", str(tmp_path / "back")]) == 0
    back = load_model(tmp_path / "back")
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.config.encoder == model.config.encoder
    heads = {
        name: tensor for name, tensor in official_state(tmp_path / "back").items() if name.startswith("encoder.head")
    }
    shapes = {"weight": (1000, 64), "bias": (1000,)}
    wanted = ("head", "head_dist") if kind else ("head",)
    assert {name: tuple(tensor.shape) for name, tensor in heads.items()} == {
        f"encoder.{name}.{part}": shape for name in wanted for part, shape in shapes.items()
    }


def test_the_windows_it_notes_are_told(tmp_path, capsys):
    save_model(official_network(image_size=(64, 48)), tmp_path / "ours")
    for options, told, windows in (
        ([], "sliding windows of 48 pixels, stride 48", (48, 48)),
        (["--window", "64", "--stride", "32"], "sliding windows of 64 pixels, stride 32", (64, 32)),
    ):
        assert main([str(tmp_path / "ours"), "--out", str(tmp_path / "back"), *options]) == 0
        assert f"variant.yml: {told}; --window and --stride note others" in capsys.readouterr().out
        noted = yaml.safe_load((tmp_path / "back" / "variant.yml").read_text())["inference_kwargs"]
        assert (noted["window_size"], noted["window_stride"]) == windows
    assert pretrained([str(tmp_path / "back")]) == 0
    assert "variant.yml notes sliding windows of 64 pixels, stride 32, " in capsys.readouterr().out


@pytest.mark.parametrize("noted", ["[]", "{}", "{window_size: 64}", "{window_size: 64, window_stride: x}"])
def test_a_variant_file_may_note_no_windows(tmp_path, capsys, noted):
    save_model(official_network(), tmp_path / "ours")
    assert main([str(tmp_path / "ours"), "--out", str(tmp_path / "back")]) == 0
    variant = tmp_path / "back" / "variant.yml"
    values = yaml.safe_load(variant.read_text()) | {"inference_kwargs": yaml.safe_load(noted)}
    variant.write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert pretrained([str(tmp_path / "back")]) == 0
    assert "sliding windows" not in capsys.readouterr().out


def test_names_and_colours_come_back(tmp_path):
    model = official_network()
    model.config = replace(model.config, palette=((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12), (13, 14, 15)))
    save_model(model, tmp_path / "ours")
    assert main([str(tmp_path / "ours"), "--out", str(tmp_path / "back")]) == 0
    assert pretrained([str(tmp_path / "back"), "--out", str(tmp_path / "again")]) == 0
    again = load_model(tmp_path / "again").config
    assert (again.classes, again.palette) == (CLASSES, model.config.palette)
    variant = tmp_path / "back" / "variant.yml"
    values = yaml.safe_load(variant.read_text())
    # nothing more where the official code reads, which passes all it finds there on
    assert set(values) == {"dataset_kwargs", "inference_kwargs", "net_kwargs", "class_names"}
    for broken in (["one", 1, 2, 3], [["one", 1, 2]], [["one", 1, 2, "red"]], [], 5, [["one", 1, 2, 3]]):
        variant.write_text(yaml.safe_dump(values | {"class_names": broken}))
        with pytest.raises(CheckpointError, match=r"variant\.yml: "):
            load_model(tmp_path / "back")


@torch.inference_mode()
def test_layer_scale_is_folded(tmp_path, capsys):
    model = official_network(layer_scale=True)
    save_model(model, tmp_path / "ours")
    assert main([str(tmp_path / "ours"), "--out", str(tmp_path / "back")]) == 0
    assert "LayerScale folded" in capsys.readouterr().out
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(load_model(tmp_path / "back")(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"norm_eps": 1e-6}, "LayerNorm eps 1e-06 (wanted 1e-05)"),
        ({"registers": 2}, "2 register tokens"),
        ({"positions": "rotary"}, "rotary positions (wanted learnt)"),
        ({"position_resize": "bicubic"}, "positions resized bicubic (wanted bilinear)"),
        ({"mlp_width": 128}, "feed-forwards of 128 (wanted 256)"),
    ],
)
def test_what_the_official_network_cannot_have_is_named(tmp_path, capsys, kind, message):
    save_model(official_network(**kind), tmp_path / "ours")
    assert main([str(tmp_path / "ours"), "--out", str(tmp_path / "back")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_mistakes_are_one_line(tmp_path, capsys):
    save_model(official_network(), tmp_path / "ours")
    torch.save({"model": {"encoder.head.weight": torch.zeros(3, 3)}}, tmp_path / "other.pth")
    for options, message in (
        (["--out", str(tmp_path / "ours")], "would be lost"),
        (["--out", str(tmp_path), "--heads-of", str(tmp_path / "other.pth")], "would be lost"),
        (["--out", str(tmp_path / "back"), "--heads-of", str(tmp_path / "other.pth")], "encoder.head.weight is (3, 3)"),
        (["--out", str(tmp_path / "back"), "--window", "0"], "--window 0: wanted at least 1 pixel"),
    ):
        assert main([str(tmp_path / "ours"), *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
