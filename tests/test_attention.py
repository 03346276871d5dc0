"""Attention maps against the official implementation's, and the pictures drawn of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segmenter import attention
from segmenter.attention import Options, attention_maps, find_token
from segmenter.attention_sheet import attention_overlay, attention_sheet
from segmenter.checkpoint import load_model
from segmenter.errors import ConfigError
from segmenter.images import read_image
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from tests.networks import checkpoint_fixture, small_network  # noqa: F401 - a fixture


def options(**values: Any) -> Options:
    return Options(checkpoint=Path("c"), images=Path("i"), out=Path("o"), **values)


def test_official_attention_maps(shared: Path) -> None:
    folder = shared / "golden" / "vit_mask16"
    model = load_model(folder / "checkpoint.pth")
    with np.load(folder / "golden.npz") as file:
        images, encoder, decoder = (torch.from_numpy(file[name]) for name in ("im0", "attn_enc", "attn_dec"))
    for image, of_encoder, of_decoder in zip(images, encoder, decoder, strict=True):
        for token in (0, 1, 9, 16):
            maps = attention_maps(model, image[None], "encoder", token)
            assert maps.shape == (3, 2, 4, 4)
            # as the official logits: two orders of the same sums
            torch.testing.assert_close(maps[1].flatten(1), of_encoder[:, token, 1:], atol=1e-5, rtol=1e-4)
        for token in (0, 15, 16, 22):
            maps = attention_maps(model, image[None], "decoder", token)
            torch.testing.assert_close(maps[0].flatten(1), of_decoder[:, token, :16], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("distilled", [False, True])
def test_every_layer_of_a_padded_image(distilled: bool) -> None:
    model = small_network(distilled=distilled)
    image = torch.randn(1, 3, 40, 70, generator=torch.Generator().manual_seed(0))
    h, w, extra = 3, 5, 1 + distilled
    for layer, maps in enumerate(attention_maps(model, image, "encoder", extra + 7)):
        whole = model.get_attention_map_enc(image, layer)[0]
        torch.testing.assert_close(maps, whole[:, extra + 7, extra:].reshape(2, h, w))
    for layer, maps in enumerate(attention_maps(model, image, "decoder", h * w + 2)):
        whole = model.get_attention_map_dec(image, layer)[0]
        torch.testing.assert_close(maps, whole[:, h * w + 2, : h * w].reshape(1, h, w))


def test_tokens_by_pixel_and_by_name() -> None:
    config = small_network(distilled=True).config
    assert find_token(options(at=(33, 17)), config, (40, 70)) == (2 + 5 + 2, "patch at 33, 17", (32, 16, 48, 32))
    # the last patch reaches beyond the image, its box does not
    assert find_token(options(at=(69, 39), part="decoder"), config, (40, 70))[::2] == (14, (64, 32, 70, 40))
    assert find_token(options(), config, (40, 70)) == (0, "class token", None)
    assert find_token(options(token="Distillation"), config, (40, 70)) == (1, "distillation token", None)
    assert find_token(options(part="decoder", token="SKY"), config, (40, 70)) == (15 + 3, "sky token", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"at": (70, 0)}, r"--at 70 0: outside the image of 70x40 pixels; wanted 0 0 to 69 39"),
        ({"at": (0, -1)}, "--at 0 -1: outside the image"),
        ({"token": "distillation"}, "--token distillation: the encoder has no such token; wanted one like class"),
        ({"part": "decoder", "token": "hous"}, "the decoder has no such token; wanted one like house"),
        ({"part": "decoder", "token": "xyz"}, "wanted one like ground, tree, house, sky, road"),
        ({"part": "decoder"}, "whose attention"),
    ],
)
def test_tokens_that_are_not_there_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_token(options(**values), small_network().config, (40, 70))


def test_registers_have_no_name() -> None:
    config = small_network(registers=3).config
    with pytest.raises(ConfigError, match="the encoder has no such token; wanted one like class"):
        find_token(options(token="distillation"), config, (40, 70))
    assert find_token(options(at=(0, 0)), config, (40, 70))[0] == 4


def test_a_planted_map_glows_where_it_should() -> None:
    image = np.full((40, 70, 3), 100, np.uint8)
    weights = np.zeros((3, 5))
    weights[2, 4], weights[0, 1] = 0.2, 0.05
    picture = attention_overlay(image, weights, 16).astype(int)
    assert picture.shape == (40, 70, 3)
    bright, faint, dark = picture[32:, 64:], picture[:16, 16:32], picture[16:32]
    assert (bright == bright[0, 0]).all()
    assert (dark == dark[0, 0]).all()
    assert np.ptp(dark[0, 0]) == 0  # grey: nobody looks there
    assert bright[0, 0].sum() > 2 * dark[0, 0].sum()
    assert np.ptp(faint[0, 0]) > 20
    # a map of zeros is no reason to divide by one
    assert np.ptp(attention_overlay(image, np.zeros((3, 5)), 16)) == 0


def test_a_sheet_has_a_row_a_layer_and_a_column_a_head() -> None:
    image = np.full((40, 70, 3), 100, np.uint8)
    maps = np.full((2, 3, 3, 5), 1e-3)
    maps[1, 2, 2, 0] = 0.9
    sheet = attention_sheet(image, maps, 16, (0, 1), "encoder", (32, 16, 48, 32), 70)
    one = attention_sheet(image, maps[:1], 16, (0,), "encoder", (32, 16, 48, 32), 70)
    assert sheet.shape[0] - one.shape[0] == 40 + 28
    marked = (sheet.astype(int) == (0, 230, 118)).all(-1)
    rows, columns = np.nonzero(marked)
    assert (rows.min() - 8, columns.min() - 8, rows.max() - 8, columns.max() - 8) == (14, 30, 33, 49)
    # only head 2 of layer 1 looks at one patch alone, at the lower left; the rest look everywhere
    left = 8 + 3 * (70 + 8) + 16
    tile = sheet[one.shape[0] : one.shape[0] + 40, left : left + 70].astype(int)
    assert tile[36, 8].sum() > 2 * tile[36, 40].sum()
    mean, head = (sheet[one.shape[0] : one.shape[0] + 40, x : x + 70].astype(int) for x in (8, 8 + 78 + 16))
    assert mean[36, 8].sum() > 2 * mean[36, 40].sum()
    assert head[36, 8].tolist() == head[36, 40].tolist()
    with_unmarked = attention_sheet(image, maps, 16, (0, 1), "encoder", None, 70)
    assert not (with_unmarked.astype(int) == (0, 230, 118)).all(-1).any()


def test_attention_command(
    checkpoint: Path, picture_root: Path, tiny_model: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = picture_root / "images" / "train", tmp_path / "out"
    arguments = ["--checkpoint", str(checkpoint), "--images", str(folder), "--out", str(out)]
    assert attention.main([*arguments, "--at", "10", "20", "--layers", "1", "--width", "0"]) == 0
    assert "3 images" in capsys.readouterr().out
    image = read_image(folder / "p1.png")
    x = normalize(image, tiny_model.config.preprocess)
    maps = attention_maps(tiny_model, x, "encoder", 1 + 2 * 7 + 1)[1:].numpy()
    wanted = attention_sheet(image, maps, 8, (1,), "encoder, patch at 10, 20", (8, 16, 16, 24), 56)
    np.testing.assert_array_equal(read_image(out / "p1.png"), wanted)
    assert attention.main([*arguments, "--part", "decoder", "--token", "wall"]) == 0
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        (["--layers", "2"], "--layers 2: the encoder has layers 0 to 1"),
        (["--layers", "-1"], "--layers -1: the encoder has layers 0 to 1"),
        (["--at", "56", "0"], "outside the image of 56x40 pixels"),
        (["--at", "1", "1", "--token", "class"], "--at and --token both name a token"),
        (["--width", "-2"], "--width -2: wanted pixels"),
        (["--images", str(tmp_path / "empty")], "holds no images"),
        (["--images", str(tmp_path / "nowhere")], "no such file or folder"),
    ):
        assert attention.main([*arguments, *wrong]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("error:") == 1
    before = (folder / "p1.png").read_bytes()
    assert attention.main([*arguments, "--out", str(folder / ".." / "train")]) == 2
    assert "p1.png: would be written over; pass another --out than the images' folder" in capsys.readouterr().err
    assert (folder / "p1.png").read_bytes() == before
    Image.new("RGB", (20, 20)).save(tmp_path / "empty" / "broken.png")
    (tmp_path / "empty" / "broken.png").write_bytes(b"nothing")
    assert attention.main([*arguments, "--images", str(tmp_path / "empty")]) == 2
    assert "broken.png: not a JPEG or PNG file" in capsys.readouterr().err


def test_a_linear_decoder_has_none() -> None:
    with pytest.raises(ConfigError, match="the decoder is linear and has no attention; look at --part encoder"):
        attention_maps(small_network("linear"), torch.zeros(1, 3, 32, 32), "decoder", 0)
