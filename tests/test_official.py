"""Official checkpoints: those of every kind load, no code in one runs, and others are named."""

import os
import pickle
import re
import warnings

import pytest
import torch

from segmenter import load_model
from segmenter.errors import CheckpointError
from segmenter.pretrained import main as pretrained
from tests.networks import count_blocks, small_network
from tests.official_files import write_variant


class _RunsCode:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_runs_code_is_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write_variant(tmp_path)
    write({"model": _RunsCode()}, tmp_path / "checkpoint.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ours is the one line to be read
        with pytest.raises(CheckpointError, match="not loaded"):
            load_model(tmp_path / "checkpoint.pth")
    assert not (tmp_path / "owned").exists()


def test_a_variant_file_that_runs_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}}, tmp_path / "checkpoint.pth")
    (tmp_path / "variant.yml").write_text("net_kwargs: !!python/object/apply:os.mkdir [owned]\n")
    with pytest.raises(CheckpointError, match="refused"):
        load_model(tmp_path / "checkpoint.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("value", ["2020-13-45", "!!int seven", "!!bool maybe", "!!timestamp soon"])
def test_a_variant_file_with_impossible_values_is_named(tmp_path, value):
    torch.save({"model": {}}, tmp_path / "checkpoint.pth")
    write_variant(tmp_path)
    with (tmp_path / "variant.yml").open("a") as file:
        file.write(f"x: {value}\n")
    with pytest.raises(CheckpointError, match=r"variant\.yml: not readable as plain YAML"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x80\x02."])
def test_files_that_are_no_checkpoint_are_named(tmp_path, content):
    write_variant(tmp_path)
    (tmp_path / "checkpoint.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth"):
        load_model(tmp_path)


def test_a_missing_official_checkpoint_is_what_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nope\.pth: no such file"):
        load_model(tmp_path / "nope.pth")


def test_an_official_checkpoint_needs_its_variant_file(tmp_path):
    torch.save({"model": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"variant\.yml.*beside it"):
        load_model(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize(
    ("decoder", "distilled", "patch"),
    [("mask", False, 16), ("linear", False, 16), ("linear", True, 16), ("mask", True, 16), ("mask", False, 8)],
)
def test_official_files_of_every_kind_load(tmp_path, decoder, distilled, patch):
    mlp = {"mlp_width": 256, "image_size": (64, 48), "patch_size": patch, "distilled": distilled}
    source = small_network(decoder, **mlp)
    tensors = dict(source.state_dict())
    if decoder == "mask":
        # the official decoder's feed-forward layers are four times as wide; take them from a network that has them
        from dataclasses import replace

        from segmenter.model import Segmenter

        wide = replace(source.config, decoder=replace(source.config.decoder, mlp_width=256))
        source = Segmenter(wide).eval()
        tensors = dict(source.state_dict())
    tensors |= {"encoder.head.weight": torch.zeros(1000, 64), "encoder.head.bias": torch.zeros(1000)}
    if distilled:
        tensors |= {"encoder.head_dist.weight": torch.zeros(1000, 64), "encoder.head_dist.bias": torch.zeros(1000)}
    torch.save(
        {"model": tensors, "epoch": 3, "n_cls": 5, "lr_scheduler": {"step_size": 1}}, tmp_path / "checkpoint.pth"
    )
    name = "name: linear" if decoder == "linear" else "name: mask_transformer, n_layers: 1, dropout: 0.1"
    write_variant(tmp_path, decoder=name, distilled=str(distilled).lower(), patch=patch, normalization="deit")
    loaded = load_model(tmp_path)
    assert loaded.config.preprocess.mean[0] == 0.485
    image = torch.randn(1, 3, 70, 50)
    with torch.inference_mode():
        assert torch.equal(loaded(image), source(image))


@pytest.fixture
def linear(tmp_path):
    """The folder of an official checkpoint of 5 classes with a linear decoder."""
    source = small_network("linear", mlp_width=256, image_size=(64, 48))
    (tmp_path / "official").mkdir()
    torch.save({"model": source.state_dict()}, tmp_path / "official" / "checkpoint.pth")
    write_variant(tmp_path / "official", decoder="name: linear")
    return tmp_path / "official"


def test_a_dataset_gives_names_and_colours(linear, tmp_path, capsys):
    (tmp_path / "five").mkdir()
    names = tmp_path / "five" / "classes.txt"
    names.write_text("a, 1, 2, 3\nb\nc\nd\ne\n")
    command = [str(linear), "--out", str(tmp_path / "ours"), "--dataset", "folder", "--data", str(tmp_path / "five")]
    assert pretrained(command) == 0
    config = load_model(tmp_path / "ours").config
    assert config.classes == ("a", "b", "c", "d", "e")
    assert config.palette[0] == (1, 2, 3)
    capsys.readouterr()
    assert pretrained([str(linear), "--dataset", "camvid"]) == 2
    assert "variant.yml: n_cls is 5, and 11 class names were given; correct it, or pass" in capsys.readouterr().err
    assert pretrained([str(linear), "--num-classes", "5"]) == 2
    assert "--num-classes 5: is for ViT weights" in capsys.readouterr().err


def test_a_wrong_number_of_classes_leads_to_the_variant_file(linear, capsys):
    write_variant(linear, decoder="name: linear", classes=9)
    assert pretrained([str(linear)]) == 2
    said = capsys.readouterr()
    assert "does not fit" in said.out
    assert said.err.strip().endswith(f"or correct {linear / 'variant.yml'}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "name: deeplab_dec"}, "deeplab_dec"),
        ({"normalization": "none"}, "'none'"),
        ({"patch": 7}, "patch size 7"),
        ({"heads": 0}, r"variant\.yml.*encoder heads 0"),
        ({"decoder": "n_layers: 2"}, "KeyError"),
    ],
)
def test_unsupported_variant_files_are_named(tmp_path, change, message):
    torch.save({"model": {}}, tmp_path / "checkpoint.pth")
    write_variant(tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("told", "claimed", "message"),
    [
        ("  n_layers: 2\n", "  n_layers: 1099511627776\n", r"encoder\.blocks\.10\..* is missing"),
        ("mer, n_layers: 1", "mer, n_layers: 1099511627776", r"decoder\.blocks\.1\..* is missing"),
        ("  - 48\n", "  - 1099511627776\n", r"encoder\.pos_embed is \(1, 13, 64\), wanted \(1, 274877906945, 64\)"),
        ("d_model: 64", "d_model: 1048576", r"wanted \(1048576, 1048576\)"),
        ("n_cls: 5", "n_cls: 1099511627776", "1099511627776 classes: wanted at least one class, at most 32768"),
    ],
)
def test_sizes_are_held_against_the_weights_before_a_network_has_them(
    tmp_path, monkeypatch, capsys, told, claimed, message
):
    torch.save({"model": small_network(mlp_width=256, image_size=(64, 48)).state_dict()}, tmp_path / "checkpoint.pth")
    write_variant(tmp_path)
    text = (tmp_path / "variant.yml").read_text()
    assert text.count(told) == 1
    (tmp_path / "variant.yml").write_text(text.replace(told, claimed))
    count_blocks(monkeypatch, 1000)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)
    assert pretrained([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1


def test_ade20k_checkpoints_know_their_classes(tmp_path):
    from segmenter.official import official_config

    net = {
        "backbone": "vit_tiny_patch16_384",
        "d_model": 192,
        "n_heads": 3,
        "n_layers": 12,
        "patch_size": 16,
        "image_size": 512,
        "n_cls": 150,
        "decoder": {"name": "linear"},
    }
    config = official_config({"net_kwargs": net, "dataset_kwargs": {"dataset": "ade20k"}}, tmp_path)
    assert config.classes[:2] == ("wall", "building")
    assert config.encoder.image_size == (512, 512)
