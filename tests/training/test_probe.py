import copy
from dataclasses import replace

import pytest
import torch

from segmenter import load_model
from segmenter.checkpoint import save_model
from segmenter.datasets import open_dataset
from segmenter.probe import main
from segmenter.training.options import ProbeOptions
from segmenter.training.probe import encode, fit_decoder, standardize
from tests.networks import small_network


@pytest.mark.parametrize("decoder", ["linear", "mask"])
def test_standardized_tokens_are_what_the_changed_encoder_gives(decoder):
    model = small_network(decoder, layer_scale=True)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        tokens = model.patch_tokens(images)
        standardize(model, tokens)
        # a decoder that was trained already goes on where it was
        torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.patch_tokens(images), tokens, rtol=1e-3, atol=1e-3)
    flat = tokens.flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(64), rtol=0, atol=1e-3)
    torch.testing.assert_close(flat.std(0), torch.ones(64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("decoder", ["linear", "mask"])
def test_only_the_decoder_learns_and_it_does(tmp_path, picture_root, decoder):
    data = open_dataset("folder", picture_root, "train")
    model = small_network(decoder, classes=data.classes)
    tokens, labels = encode(model, data, torch.device("cpu"))
    assert tokens.shape == (3, 3 * 4, 64)
    assert labels.shape == (3, 40, 56)
    before = copy.deepcopy(model.encoder.state_dict())
    options = ProbeOptions(tmp_path, tmp_path, "folder", batch=3, lr=1e-2 if decoder == "linear" else 1e-3)
    first, last = (fit_decoder(model, tokens, labels, replaced, torch.device("cpu")) for replaced in steps(options))
    assert last < 0.7 * first
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name])


def steps(options):
    return replace(options, steps=1), replace(options, steps=60, class_weights=True)


def test_the_command_writes_a_checkpoint_that_loads(tmp_path, picture_root, capsys, tiny_model):
    tiny_model.config = replace(tiny_model.config, classes=("class 0", "class 1", "class 2"))
    save_model(tiny_model, tmp_path / "init")
    command = [str(tmp_path / "init"), "--out", str(tmp_path / "probed"), "--dataset", "folder", "--steps", "5"]
    assert main([*command, "--data", str(picture_root)]) == 0
    assert "mIoU" in capsys.readouterr().out
    data = open_dataset("folder", picture_root, "train")
    named = replace(tiny_model.config, classes=data.classes, palette=data.palette)
    assert load_model(tmp_path / "probed").config == named
    assert main([*command, "--data", str(picture_root), "--loss-stride", "3"]) == 2
    assert "loss stride 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--lr", "1e30"], "came apart at step"),
        (["--lr", "0"], "--lr 0"),
        (["--weight-decay", "-1"], "--weight-decay -1"),
        (["--steps", "0"], "--steps 0"),
        (["--batch", "0"], "--batch 0"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_saved(tmp_path, picture_root, capsys, tiny_model, options, named):
    tiny_model.config = replace(tiny_model.config, classes=("class 0", "class 1", "class 2"))
    save_model(tiny_model, tmp_path / "init")
    command = [str(tmp_path / "init"), "--out", str(tmp_path / "probed"), "--dataset", "folder", "--steps", "5"]
    assert main([*command, "--data", str(picture_root), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error:")
    assert named in error
    assert not (tmp_path / "probed").exists()


def test_weights_that_the_last_update_broke_are_not_saved(tmp_path, picture_root, capsys, tiny_model, monkeypatch):
    def break_them(self, *_):
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("inf"))

    save_model(tiny_model, tmp_path / "init")
    monkeypatch.setattr(torch.optim.AdamW, "step", break_them)
    command = [str(tmp_path / "init"), "--out", str(tmp_path / "probed"), "--dataset", "folder", "--steps", "1"]
    assert main([*command, "--data", str(picture_root)]) == 2
    assert "came apart at step 1" in capsys.readouterr().err
    assert not (tmp_path / "probed").exists()
