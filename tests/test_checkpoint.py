import errno
import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch

from segmenter import load_model
from segmenter import pretrained as pretrained_command
from segmenter import probe as probe_command
from segmenter.checkpoint import require_new_checkpoint, save_model, write_tensors
from segmenter.errors import CheckpointError
from segmenter_engines import qat as qat_command
from tests.networks import small_network


def test_round_trip_is_exact_and_any_of_its_names_opens_it(tmp_path):
    model = small_network(distilled=True, layer_scale=True)
    save_model(model, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    for name in ("run", "run/config.json", "run/model.safetensors"):
        loaded = load_model(tmp_path / name)
        assert loaded.config == model.config
        assert not loaded.training
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


def test_a_missing_checkpoint_says_what_one_is(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json.*checkpoint\.pth"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_named(tmp_path, keep):
    save_model(small_network(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
        load_model(tmp_path)


def test_weights_of_another_variant_are_named(tmp_path):
    save_model(small_network(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"do not fit.*encoder\.blocks\.2.*is missing"):
        load_model(tmp_path)
    config["encoder"] |= {"depth": 2, "mlp_width": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\(128, 64\), wanted \(64, 64\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_configuration_without_heads_is_named(tmp_path, part):
    save_model(small_network(), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values[part]["heads"] = 0
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"config\.json: {part} heads 0"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("encoder", "image_size", ["64", "64"]),
        ("encoder", "image_size", [64]),
        ("encoder", "distilled", "no"),
        ("encoder", "norm_eps", "small"),
        ("encoder", "depth", 2.5),
        ("decoder", "dropout", None),
    ],
)
def test_a_configuration_of_the_wrong_kinds_is_named(tmp_path, part, name, value):
    save_model(small_network(), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"config\.json: {part} {name} .*: wanted .*, as in"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, value):
    model = small_network()
    with torch.no_grad():
        model.encoder.blocks[1].norm1.weight[3] = value
    save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: encoder\.blocks\.1\.norm1\.weight holds values"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"encoder": {}}', '{"encoder": {"patch_size": 16}}'])
def test_broken_config_is_named(tmp_path, text):
    save_model(small_network(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    old = small_network(seed=1)
    save_model(old, tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*model\.safetensors"):
        save_model(small_network(seed=2), tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.state_dict()["encoder.pos_embed"], old.state_dict()["encoder.pos_embed"])


class Killed(BaseException):
    """Not one the code under test can catch."""


def test_a_save_killed_between_its_two_files_is_found(tmp_path, monkeypatch):
    old, new = small_network(seed=1), small_network(seed=2, classes=("a", "b", "c", "d", "e"))
    save_model(old, tmp_path)
    replace, replaced = Path.replace, []

    def killed_at_the_second(self, target):
        if replaced:
            raise Killed
        replaced.append(target.name)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed_at_the_second)
        with pytest.raises(Killed):
            save_model(new, tmp_path)
    with pytest.raises(CheckpointError, match=r"saved with another config\.json.*save the checkpoint again"):
        load_model(tmp_path)
    save_model(new, tmp_path)
    assert load_model(tmp_path).config == new.config


def test_a_configuration_may_be_edited_and_a_pair_may_have_no_name(tmp_path):
    model = small_network()
    save_model(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["classes"][0] = "floor"
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_model(tmp_path).config.classes[0] == "floor"
    # as earlier versions wrote them
    write_tensors(model.state_dict(), tmp_path / "model.safetensors")
    assert load_model(tmp_path).config.classes[0] == "floor"
    del values["config_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_model(tmp_path).config.classes[0] == "floor"
    # an earlier version's configuration beside weights that were saved over it
    save_model(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="saved with another"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    assert load_model(tmp_path).config == model.config


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


VARIANT = """\
dataset_kwargs: {{dataset: {dataset}, normalization: vit}}
net_kwargs:
  backbone: {backbone}
  d_model: 64
  decoder: {{{decoder}}}
  distilled: {distilled}
  drop_path_rate: 0.1
  dropout: 0.0
  image_size: !!python/tuple
  - 64
  - 48
  n_cls: {classes}
  n_heads: {heads}
  n_layers: 2
  normalization: {normalization}
  patch_size: {patch}
"""


def write_variant(folder, **changes):
    values = {
        "dataset": "anything",
        "backbone": "vit_tiny_patch16_384",
        "decoder": "name: mask_transformer, n_layers: 1, drop_path_rate: 0.0, dropout: 0.1",
        "distilled": "false",
        "classes": 5,
        "normalization": "vit",
        "patch": 16,
        "heads": 2,
    }
    (folder / "variant.yml").write_text(VARIANT.format(**(values | changes)))


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


def test_what_a_network_is_made_of_and_trained_states_are_never_written_over(tmp_path, capsys):
    """Through the links too that a training run's best and last network have."""
    state = tmp_path / "run" / "states" / "best-00000010"
    save_model(small_network(), state)
    (tmp_path / "run" / "best").symlink_to(Path("states") / state.name)
    before = (state / "model.safetensors").read_bytes()
    best, official = tmp_path / "run" / "best", tmp_path / "checkpoint.pth"
    official.write_bytes(b"weights")
    for out, source, message in (
        (best, None, "is a state of a training run"),
        (state, tmp_path / "other", "is a state of a training run"),
        (best, best, "is the checkpoint it would be made of"),
        (state, best / "config.json", "is the checkpoint it would be made of"),
        (tmp_path, official, "is the checkpoint it would be made of"),
    ):
        with pytest.raises(CheckpointError, match=message):
            require_new_checkpoint(out, source)
    require_new_checkpoint(tmp_path / "run" / "new", best)
    for command in (pretrained_command, probe_command, qat_command):
        arguments = {
            pretrained_command: [str(state / "model.safetensors"), "--num-classes", "5"],
            probe_command: [str(best), "--dataset", "shapes"],
            qat_command: [str(best), "--dataset", "shapes", "--recipe", "m.onnx"],
        }[command]
        assert command.main([*arguments, "--out", str(best)]) == 2
        assert f"--out {best}: is " in capsys.readouterr().err
    assert (state / "model.safetensors").read_bytes() == before
