"""mmsegmentation's Segmenters: the logits of its own definition, what its files note, and what is refused."""

import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import torch

from segmenter import load_model
from segmenter.config import HALF, IMAGENET
from segmenter.errors import CheckpointError
from segmenter.mmseg import load_mmseg
from segmenter.pickles import load_plain
from segmenter.pretrained import from_backbone, main
from tests.mmseg_files import COLOURS, CONFIG_0, CONFIG_1, HEAD, META_0, META_1, NAMES, checkpoint, network


def imported(path, **options):
    return load_mmseg(path, load_plain(path), **options).eval()


@torch.inference_mode()
def assert_logits(path, source, size):
    """To 1e-5 of the largest, at the size of training and at another."""
    model, truth = imported(path), source.double()
    for H, W in (size, (48, 96), (32, 32)):
        image = torch.randn(2, 3, H, W, generator=torch.Generator().manual_seed(1))
        wanted = truth(image.double())
        assert (model(image) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("decoder", ["mask", "linear"])
@pytest.mark.parametrize("meta", [META_0, META_1, {}])
def test_logits_are_the_sources(tmp_path, decoder, meta):
    if decoder == "linear":
        fcn = "decode_head=dict(type='FCNHead', num_convs=0, concat_input=False, num_classes=5),\n"
        meta = {key: value.replace(HEAD, fcn) if isinstance(value, str) else value for key, value in meta.items()}
    path, source = tmp_path / "segmenter_vit.pth", network(0, decoder)
    torch.save(checkpoint(source, meta), path)
    assert_logits(path, source, (64, 64))
    config = imported(path).config
    assert (config.encoder.norm_eps, config.decoder.norm_eps) == (1e-6, 1e-5)
    assert (config.encoder.position_resize, config.encoder.drop_path) == ("bicubic", 0.1)
    assert (config.decoder.kind, config.preprocess, config.name) == (decoder, HALF, "segmenter_vit")


def test_a_configuration_of_ones_own_is_followed(tmp_path):
    text = CONFIG_1.replace("num_heads=2, drop", "num_heads=4, drop").replace("'bicubic'", "'bilinear'")
    text = text.replace("img_size=(64, 64)", "img_size=(40, 128)").replace("eps=1e-06", "eps=0.05")
    text = text.replace("num_heads=2, num_layers=2", "num_heads=8, norm_cfg=dict(type='LN', eps=0.02), num_layers=2")
    text = text.replace("mean=[127.5, 127.5, 127.5]", "mean=[123.675, 116.28, 103.53]")
    text = text.replace("std=[127.5, 127.5, 127.5]", "std=[58.395, 57.12, 57.375]")
    path = tmp_path / "own.pth"
    source = network(heads=4, grid=(2, 8), eps=0.05, resize="bilinear", inner=64, inner_heads=8, inner_eps=0.02)
    torch.save(checkpoint(source, {"cfg": text}), path)
    assert_logits(path, source, (32, 128))
    config = imported(path).config
    assert config.encoder.image_size == (32, 128)
    assert config.preprocess == IMAGENET


def test_images_that_are_not_normalised_stay_so(tmp_path):
    path = tmp_path / "raw.pth"
    text = CONFIG_1.replace("mean=[127.5, 127.5, 127.5], ", "").replace("std=[127.5, 127.5, 127.5], ", "")
    torch.save(checkpoint(network(), {"cfg": text}), path)
    preprocess = imported(path).config.preprocess
    assert preprocess.mean == (0, 0, 0)
    np.testing.assert_allclose(preprocess.std, 1 / 255)


def test_the_command_accounts_for_every_tensor(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    source = network()
    # the layer of the base class, which early mask transformers kept, and a head of training alone
    unread = {
        "decode_head.conv_seg.weight": torch.zeros(5, 128, 1, 1),
        "decode_head.conv_seg.bias": torch.zeros(5),
        "auxiliary_head.conv_seg.bias": torch.zeros(5),
    }
    path = tmp_path / "vit.pth"
    torch.save(checkpoint(source, more=unread), path)
    assert main([str(path), "--out", str(tmp_path / "init")]) == 0
    out = capsys.readouterr().out
    tensors = len(source.state_dict())
    assert f"{tensors - 2} as it is; 2 rearranged; 3 left out" in out
    assert "from backbone.layers.*.attn.attn.in_proj_weight" in out
    assert "mmsegmentation tests it in windows of 64x64, 48x48 apart: evaluate with --window 64 --stride 48\n" in out
    model = load_model(tmp_path / "init")
    assert model.config.classes == NAMES
    assert model.config.palette == tuple(map(tuple, COLOURS))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(image), imported(path)(image))


@pytest.mark.parametrize("meta", [{}, {"CLASSES": None, "PALETTE": None}, "none"])
def test_without_names_classes_are_anonymous_or_a_datasets(tmp_path, capsys, meta):
    (tmp_path / "classes.txt").write_text("a, 1, 2, 3\nb\nc\nd\ne\n")
    path = tmp_path / "vit.pth"
    torch.save(checkpoint(network(), meta), path)
    assert main([str(path)]) == 0
    assert "no configuration in it: taken to be as mmsegmentation's own" in capsys.readouterr().out
    assert imported(path).config.classes[0] == "class 0"
    command = [str(path), "--out", str(tmp_path / "init"), "--dataset", "folder", "--data", str(tmp_path)]
    assert main(command) == 0
    assert load_model(tmp_path / "init").config.palette[0] == (1, 2, 3)
    for options, message in (
        (
            ["--dataset", "camvid"],
            "its decoder has 5 classes, and there are 11 class names; pass --dataset, one of 5 classes",
        ),
        (["--num-classes", "5"], "--num-classes 5: is for ViT weights"),
    ):
        capsys.readouterr()
        assert main([str(path), *options]) == 2
        assert message in capsys.readouterr().err


def test_names_alone_get_colours(tmp_path):
    path = tmp_path / "vit.pth"
    for colours in (None, COLOURS[:4], [[300, 0, 0]] * 5, "none"):
        torch.save(checkpoint(network(), {"CLASSES": NAMES, "PALETTE": colours}), path)
        config = imported(path).config
        assert config.classes == NAMES
        assert len(set(config.palette)) == 5


@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainings_note_is_passed_over(tmp_path, monkeypatch, zipped):
    class HistoryBuffer:
        def __init__(self):
            self.log_history = np.arange(3.0)
            self.methods = {"min": HistoryBuffer.min}

        def min(self):
            return self.log_history.min()

    name = "mmengine.logging.history_buffer"
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = name, "HistoryBuffer.min"
    for part in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].HistoryBuffer = HistoryBuffer
    path, source = tmp_path / "iter_160000.pth", network()
    meta = META_1 | {"hook_msgs": {"best_score": np.float64(0.45)}, "time": np.int64(3)}
    held = checkpoint(source, meta) | {"message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}}}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert_logits(path, source, (64, 64))
    assert imported(path).config.classes == NAMES


class _RunsCode:
    def __reduce__(self):
        return compile, ("1", "owned", "eval")


def test_other_objects_are_refused_by_name_and_what_to_do(tmp_path, capsys):
    path = tmp_path / "vit.pth"
    torch.save(checkpoint(network(), META_0 | {"hook": _RunsCode()}), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert "holds more than tensors (compile), or is no checkpoint, and was not loaded" in said
    assert "where you trust it, load it with what wrote it and save its tensors and plain values alone" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["model = dict(backbone=__import__('os').mkdir('owned'))", "model = (", "x = 1", "(" * 999]
)
def test_a_configuration_is_never_run(tmp_path, capsys, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(network(), META_0 | {"config": text}), tmp_path / "vit.pth")
    assert main(["vit.pth"]) == 0
    assert "its configuration could not be read" in capsys.readouterr().out
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'VisionTransformer'", "'mmseg.MAE'", "a backbone MAE"),
        ("'SegmenterMaskTransformerHead'", "'SETRUPHead'", "a decode_head SETRUPHead"),
        ("with_cls_token=True", "with_cls_token=False", "no class token in the blocks"),
        ("embed_dims=128", "out_indices=(0, 1)", r"out_indices \[0, 1\]"),
        ("'bicubic'", "'nearest'", "positions resized another way"),
        ("final_norm=True", "act_cfg=dict(type='ReLU')", "activations other than GELU"),
        ("num_classes=5", "align_corners=True", "align_corners"),
        ("num_classes=5", "out_channels=1, threshold=0.3", "one output and a threshold"),
        ("to_rgb=True", "to_rgb=False", "images of blue, green and red"),
    ],
)
def test_configurations_the_network_cannot_express_are_refused(tmp_path, old, new, message):
    path = tmp_path / "vit.pth"
    assert old in CONFIG_0
    torch.save(checkpoint(network(), META_0 | {"config": CONFIG_0.replace(old, new)}), path)
    with pytest.raises(CheckpointError, match=rf"its configuration has {message}, which this network cannot express"):
        imported(path)


def test_images_of_release_1_are_blue_green_and_red_unless_told(tmp_path):
    torch.save(checkpoint(network(), {"cfg": CONFIG_1.replace("bgr_to_rgb=True, ", "")}), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="images of blue, green and red"):
        imported(tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.layers.0.gamma": torch.ones(3)}, r"backbone\.layers\.0\.gamma: no part of a Segmenter of mmseg"),
        ({"decode_head.convs.0.conv.weight": torch.ones(3)}, r"decode_head\.convs\.0\.conv\.weight: no part"),
        ({"backbone.pre_ln.weight": torch.ones(3), "neck.x": torch.ones(1)}, r"pre_ln\.weight, neck\.x: no part"),
        ({"backbone.cls_token": None}, r"encoder\.cls_token: missing from the file"),
        ({"backbone.ln1.weight": None}, r"encoder\.norm\.weight: missing from the file"),
        ({"backbone.layers.1.ln1.bias": None}, r"encoder\.blocks\.1\.norm1\.bias: missing"),
        ({"backbone.pos_embed": None}, r"not a whole Segmenter.*encoder\.pos_embed is not in it"),
        ({"backbone.pos_embed": torch.zeros(1, 8, 128)}, "7 position embeddings: wanted those of images of 64x64"),
        ({"backbone.patch_embed.projection.weight": torch.zeros(128, 3, 16, 0)}, "not a whole Segmenter.*zero"),
        ({"backbone.patch_embed.projection.weight": torch.zeros(())}, "not a whole Segmenter"),
        ({"decode_head.cls_emb": torch.zeros(1, 0, 128)}, "its decoder has 0 classes, and there are 5 class names"),
        ({"decode_head.patch_proj.weight": torch.zeros(3)}, r"decoder\.proj_patch is \(3,\), wanted \(128, 128\)"),
        (
            {"backbone.layers.99999999.ln1.bias": torch.zeros(128)},
            r"encoder\.blocks\.2\.norm1\.weight.*missing from the file",
        ),
        ({"decode_head.mask_norm.bias": torch.full((5,), torch.nan)}, r"decoder\.mask_norm\.bias holds values"),
        ({"backbone.cls_token": "text"}, r"backbone\.cls_token: no part"),
        ({3: torch.zeros(3)}, "3: no part"),
    ],
)
def test_other_networks_are_refused_in_one_line(tmp_path, capsys, change, message):
    state = checkpoint(network(), META_0)["state_dict"] | change
    held = {"meta": META_0, "state_dict": {key: value for key, value in state.items() if value is not None}}
    torch.save(held, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=message):
        imported(tmp_path / "vit.pth")
    assert main([str(tmp_path / "vit.pth")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_linear_decoder_of_another_kernel_is_refused(tmp_path):
    source = checkpoint(network(0, "linear"), {})
    source["state_dict"]["decode_head.conv_seg.weight"] = torch.zeros(5, 128, 3, 3)
    torch.save(source, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.head\.weight is \(5, 128, 3, 3\), wanted \(5, 128\)"):
        imported(tmp_path / "vit.pth")


def test_tensors_alone_are_read_and_a_name_decides_nothing(tmp_path):
    path = tmp_path / "checkpoint.pth"  # the official name, without its variant file
    torch.save(checkpoint(network())["state_dict"], path)
    assert main([str(path), "--out", str(tmp_path / "init")]) == 0
    assert load_model(tmp_path / "init").config.num_classes == 5


def test_who_asks_for_another_kind_is_told_of_this_one(tmp_path):
    path = tmp_path / "vit.pth"
    torch.save(checkpoint(network()), path)
    with pytest.raises(CheckpointError, match="`segmenter pretrained` imports mmsegmentation's"):
        load_model(path)
    with pytest.raises(CheckpointError, match="`segmenter pretrained` imports mmsegmentation's"):
        from_backbone(path, NAMES)
