"""Our checkpoints: exact, whole or refused by name, and never written over what they are made of."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segmenter import load_model
from segmenter import pretrained as pretrained_command
from segmenter import probe as probe_command
from segmenter.checkpoint import require_new_checkpoint, save_model, write_tensors
from segmenter.errors import CheckpointError, ConfigError
from segmenter_engines import qat as qat_command
from tests.networks import count_blocks, small_network


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


def test_who_names_the_folder_above_is_told_the_checkpoints_in_it(tmp_path):
    for engines in ("m/checkpoint", "run/states/step-00000007"):
        save_model(small_network(), tmp_path / engines)
    (tmp_path / "m" / "model.fp32.onnx").touch()
    (tmp_path / "run" / "last").symlink_to(Path("states") / "step-00000007")
    for folder, inside in (("m", "checkpoint"), ("run", "last")):
        path = tmp_path / folder
        with pytest.raises(CheckpointError) as error:
            load_model(path)
        assert str(error.value) == f"{path}: is no checkpoint, but a folder that holds some; pass {path / inside}"


def test_a_device_that_is_not_here_is_named(tmp_path):
    save_model(small_network(), tmp_path / "model")
    for device in ("cuda:77", "toaster"):
        with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
            load_model(tmp_path / "model", device)


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


@pytest.mark.parametrize(
    ("part", "sizes", "difference"),
    [
        ("encoder", {"image_size": [1 << 20, 1 << 20]}, r"encoder\.pos_embed is \(1, 17, 64\), wanted \(1, 4294967297"),
        ("encoder", {"image_size": [1 << 80, 1 << 80]}, "whose sizes no tensor can have"),
        ("encoder", {"width": 1 << 20}, r"decoder\.proj_dec\.weight is \(64, 64\), wanted \(64, 1048576\)"),
        ("encoder", {"mlp_width": 1 << 60}, "whose sizes no tensor can have"),
        ("encoder", {"registers": 1 << 40}, r"encoder\.register_tokens is missing"),
        ("encoder", {"depth": 1 << 40}, r"encoder\.blocks\.10\..* is missing"),
        ("decoder", {"depth": 1 << 40}, r"decoder\.blocks\.1\..* is missing"),
        ("decoder", {"width": 1 << 20}, r"decoder\.blocks\.0\..*, wanted \(1048576"),
    ],
)
def test_sizes_are_held_against_the_weights_before_a_network_has_them(tmp_path, monkeypatch, part, sizes, difference):
    save_model(small_network(), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values[part] |= sizes
    (tmp_path / "config.json").write_text(json.dumps(values))
    count_blocks(monkeypatch, 1000)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: weights do not fit .*{difference}") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_shapes_alone_load_nothing_more_of_pytorch(tmp_path):
    """To draw on the meta device it imports its compiler, for more than a second."""
    save_model(small_network(), tmp_path)
    code = "import sys; from segmenter import load_model; load_model(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "torch._dynamo" not in done.stdout.split()


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
