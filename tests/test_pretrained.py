import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from segmenter import load_model
from segmenter.backbone import load_backbone
from segmenter.errors import CheckpointError, ConfigError
from segmenter.pretrained import from_backbone, main
from tests.networks import CLASSES, small_network


def backbone_file(folder, **encoder):
    """ViT weights under timm's key names, with a classification head nobody needs."""
    model = small_network(**encoder)
    tensors = {key.removeprefix("encoder."): value for key, value in model.state_dict().items() if "encoder." in key}
    path = folder / "vit.safetensors"
    save_file({**tensors, "head.weight": torch.zeros(10, 64), "mask_token": torch.zeros(1, 64)}, path)
    return path, model


@pytest.mark.parametrize("kind", [{}, {"layer_scale": True}, {"distilled": True}])
@torch.inference_mode()
def test_the_encoder_is_the_files(tmp_path, kind):
    path, source = backbone_file(tmp_path, norm_eps=1e-6, heads=1, **kind)
    model = from_backbone(path, CLASSES).eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.encoder(image), source.encoder(image))
    assert model.config.encoder.position_resize == ("dinov2" if kind == {"layer_scale": True} else "bilinear")


@torch.inference_mode()
def test_fewer_blocks_end_in_a_fresh_norm(tmp_path):
    path, source = backbone_file(tmp_path, norm_eps=1e-6, heads=1, layer_scale=True)
    model = from_backbone(path, CLASSES, blocks=1).eval()
    image = torch.randn(1, 3, 64, 64)
    tokens = source.encoder.blocks[0](source.encoder.embed(image))
    torch.testing.assert_close(model.encoder(image), F.layer_norm(tokens, (64,), eps=1e-6))


def interpolation(old: int, new: int, offset: float, cubic: bool) -> np.ndarray:
    """Float64 weights [new, old] of 1-D interpolation from the definitions, the border's values continued."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if not cubic:
            return max(1 - x, 0)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0

    weights = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / (new + offset) - 0.5
        if not cubic:
            centre = max(centre, 0)
        for source in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[row, min(max(source, 0), old - 1)] += kernel(centre - source)
    np.testing.assert_allclose(weights.sum(1), 1)
    return weights


@pytest.mark.parametrize("scaled", [True, False])
@torch.inference_mode()
def test_position_embeddings_are_resized_as_their_source_does(tmp_path, scaled):
    path, source = backbone_file(tmp_path, heads=1, layer_scale=scaled)
    grid = source.encoder.pos_embed[0, 1:].reshape(4, 4, 64).double().numpy()
    down, right = (interpolation(4, new, 0.1 if scaled else 0.0, cubic=scaled) for new in (6, 9))
    wanted = torch.from_numpy(np.einsum("ih,jw,hwc->ijc", down, right, grid)).reshape(1, 54, 64).float()
    # once, as the weights come in, or each time, where they stay as they were
    model = from_backbone(path, CLASSES, image_size=(90, 130))
    assert model.config.encoder.image_size == (96, 144)
    assert model.config.encoder.position_resize == ("bicubic" if scaled else "bilinear")
    torch.testing.assert_close(model.encoder.pos_embed[:, 1:], wanted)
    assert torch.equal(model.encoder.pos_embed[:, :1], source.encoder.pos_embed[:, :1])
    image = torch.randn(1, 3, 96, 144)
    kept = from_backbone(path, CLASSES).encoder.eval().embed(image)
    torch.testing.assert_close(kept, model.encoder.eval().embed(image))


@pytest.mark.parametrize("scaled", [True, False])
@torch.inference_mode()
def test_positions_that_were_shifted_are_not_shifted_again(tmp_path, scaled):
    path, _ = backbone_file(tmp_path, heads=1, layer_scale=scaled)
    resized = from_backbone(path, CLASSES, image_size=(96, 144), position_resize="dinov2")
    assert resized.config.encoder.position_resize == "bicubic"
    kept = from_backbone(path, CLASSES, position_resize="dinov2")
    assert kept.config.encoder.position_resize == "dinov2"
    image = torch.randn(1, 3, 96, 144)
    torch.testing.assert_close(kept.encoder.eval().embed(image), resized.encoder.eval().embed(image))


def test_files_that_are_no_such_vit_are_named(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"\(patch_embed\.proj\.weight is not in it\); use weights"):
        load_backbone(path)
    with pytest.raises(CheckpointError, match=r"nope\.safetensors: no such file; check the path"):
        load_backbone(tmp_path / "nope.safetensors")
    path, _ = backbone_file(tmp_path)
    with pytest.raises(CheckpointError, match="first 3 blocks of 2"):
        load_backbone(path).keep_blocks(3)
    whole = load_file(path)
    for change, message in (
        (
            {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 16)},
            r"vit\.safetensors: width 32: wanted a multiple of 64",
        ),
        ({"patch_embed.proj.weight": torch.zeros(64, 3, 7, 7)}, r"vit\.safetensors: patch size 7"),
        ({"pos_embed": torch.zeros(5)}, "not a ViT"),
        ({"pos_embed": torch.zeros(1, 0, 64)}, "no square grid"),
        ({"pos_embed": torch.zeros(1, 1, 64)}, "no square grid"),
    ):
        save_file(whole | change, path)
        with pytest.raises(CheckpointError, match=message):
            load_backbone(path)


def test_the_command_writes_a_checkpoint(tmp_path, capsys):
    path, _ = backbone_file(tmp_path)
    command = [str(path), "--out", str(tmp_path / "init"), "--dataset", "camvid", "--decoder", "linear"]
    assert main([*command, "--blocks", "1", "--height", "80", "--width", "96"]) == 0
    assert "11 classes" in capsys.readouterr().out
    model = load_model(tmp_path / "init")
    assert model.config.classes[0] == "Sky"
    assert model.config.encoder.image_size == (80, 96)


def test_scores_of_a_fresh_mask_decoder_begin_as_told(tmp_path):
    path, _ = backbone_file(tmp_path)
    for options, begins_at in ([], 1.0), (["--mask-scale", "12.5"], 12.5):
        command = [str(path), "--out", str(tmp_path / "init"), "--num-classes", "2", *options]
        assert main(command) == 0
        torch.testing.assert_close(
            load_model(tmp_path / "init").decoder.mask_norm.weight, torch.full((2,), begins_at), rtol=1e-3, atol=0
        )


def test_the_classes_of_a_folder_dataset(tmp_path, picture_root):
    path, _ = backbone_file(tmp_path)
    command = [str(path), "--out", str(tmp_path / "init"), "--dataset", "folder"]
    assert main([*command, "--data", str(picture_root)]) == 0
    config = load_model(tmp_path / "init").config
    assert config.classes == ("ground", "wall", "sky")
    assert config.palette[0] == (120, 90, 60)


def test_a_file_that_cannot_be_read_is_the_first_thing_to_say(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (
        ("nowhere.pth", "nowhere.pth: no such file; check the path"),
        ("text.pth", "text.pth: holds more than tensors, or is no checkpoint"),
    ):
        for options in ([], ["--dataset", "mars"]):
            assert main([str(tmp_path / name), *options]) == 2
            assert message in capsys.readouterr().err


def test_the_folder_of_an_official_checkpoint(tmp_path, capsys):
    folder = tmp_path / "official"
    folder.mkdir()
    command = [str(folder), "--out", str(tmp_path / "init")]
    assert main(command) == 2
    assert f"{folder}: holds no checkpoint.pth" in capsys.readouterr().err
    torch.save({"model": {}}, folder / "checkpoint.pth")
    assert main(command) == 2
    assert "variant.yml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "folder"], "--data"),
        ([], "--dataset and --num-classes"),
        (["--dataset", "camvid", "--num-classes", "3"], "--dataset and --num-classes"),
        (["--dataset", "mars"], "camvid"),
        (["--num-classes", "3", "--height", "64"], "--width"),
        (["--num-classes", "0"], "class"),
        (["--num-classes", "3", "--mask-scale", "0"], "more than 0"),
        (["--num-classes", "3", "--mask-scale", "2", "--decoder", "linear"], "linear"),
    ],
)
def test_mistakes_in_the_command_are_one_line(tmp_path, capsys, options, message):
    path, _ = backbone_file(tmp_path)
    assert main([str(path), "--out", str(tmp_path / "init"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error:")
    assert error.count("\n") == 1
    assert not (tmp_path / "init").exists()


@torch.inference_mode()
def test_the_real_backbone_sees_structure(shared):
    path = shared / "weights" / "vit_small_patch14_imgfocus_fp16.safetensors"
    model = from_backbone(path, CLASSES, image_size=(364, 476)).eval()
    assert model.config.encoder.grid == (26, 34)
    assert model.config.encoder.position_resize == "bicubic"
    tokens = model.encoder(torch.randn(1, 3, 364, 476))
    assert tokens.shape == (1, 1 + 26 * 34, 384)
    assert tokens.isfinite().all()


def test_config_error_is_what_classes_raise(tmp_path):
    path, _ = backbone_file(tmp_path)
    with pytest.raises(ConfigError, match="at least one class"):
        from_backbone(path, ())
