"""A fourth channel, from the files of RGB-T-Glass through augmentation, training and evaluation; engines refuse it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmenter.checkpoint import load_model, save_model
from segmenter.config import HALF, Preprocess, SegmenterConfig
from segmenter.datasets import open_dataset
from segmenter.datasets.fitted import Fitted, fit
from segmenter.errors import ConfigError, EngineError, ImageError
from segmenter.evaluate import main as evaluate
from segmenter.inference import Inference, predictor
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter.probe import main as probe
from segmenter.train import main as train
from segmenter.training.network import make_network
from segmenter.training.options import NetworkOptions


@pytest.fixture
def glass_root(tmp_path: Path) -> Path:
    """Two scenes a split of 24x40; glass is what is warm, and only the temperatures show it."""
    random = np.random.default_rng(3)
    for split in ("train", "test"):
        for index, scene in enumerate(("office", "noglass")):
            folder = tmp_path / split / scene / "0"
            folder.mkdir(parents=True)
            mask = np.zeros((24, 40), np.uint8)
            mask[6:18, 10:30] = 255 * (1 - index)
            Image.fromarray(random.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(folder / "rgb.png")
            Image.fromarray(mask).save(folder / "mask.png")
            np.save(folder / "temperature.npy", (20 + mask / 51 + random.random((24, 40))).astype(np.float32))
    return tmp_path


def scene(root: Path, name: str = "office") -> Path:
    return root / "train" / name / "0"


def test_temperatures_become_a_fourth_channel(glass_root: Path) -> None:
    dataset = open_dataset("rgbt_glass_thermal", glass_root, "train")
    assert dataset.channels == 4
    assert open_dataset("rgbt_glass", glass_root, "train").channels == 3
    sample = dataset[1]
    assert sample.name == "office/0/rgb.png"
    np.testing.assert_array_equal(sample.image[..., :3], np.array(Image.open(scene(glass_root) / "rgb.png")))
    warmth = np.load(scene(glass_root) / "temperature.npy").astype(np.float64)
    for y, x in ((0, 0), (12, 20), (23, 39)):
        wanted = 255 * (warmth[y, x] - warmth.min()) / (warmth.max() - warmth.min())
        assert abs(float(sample.image[y, x, 3]) - wanted) <= 0.5
    assert (sample.image[..., 3].min(), sample.image[..., 3].max()) == (0, 255)


def test_thermal_pictures_of_8_and_16_bits_and_without_contrast(glass_root: Path) -> None:
    folder = scene(glass_root)
    (folder / "temperature.npy").unlink()
    ramp = np.arange(24 * 40).reshape(24, 40)
    for kind, values in ((np.uint16, ramp * 60), (np.uint8, ramp % 200)):
        Image.fromarray(values.astype(kind)).save(folder / "thermal.png")
        found = open_dataset("rgbt_glass_thermal", glass_root, "train")[1].image[..., 3]
        np.testing.assert_array_equal(found, np.rint(values * (255 / values.max())).astype(np.uint8))
    Image.fromarray(np.full((24, 40), 7, np.uint8)).save(folder / "thermal.png")
    assert not open_dataset("rgbt_glass_thermal", glass_root, "train")[1].image[..., 3].any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "rgb.png: has neither temperature.npy nor thermal.png beside it"),
        (np.zeros((24, 39)), "temperature.npy: is 39x24 where the image .*rgb.png is 40x24"),
        (np.full((24, 40), np.nan), "temperature.npy: holds float64 .*wanted finite numbers"),
        (np.zeros((24, 40, 1)), r"temperature.npy: holds float64 \(24, 40, 1\)"),
        (np.array([{}]), "temperature.npy: not an array of numbers .*copy it again"),
    ],
)
def test_unusable_temperatures_are_named(glass_root: Path, values: np.ndarray | None, message: str) -> None:
    path = scene(glass_root) / "temperature.npy"
    path.unlink()
    if values is not None:
        np.save(path, values)
    with pytest.raises(ImageError, match=message):
        open_dataset("rgbt_glass_thermal", glass_root, "train")[1]


def test_temperatures_that_look_like_an_archive_are_named(glass_root: Path) -> None:
    (scene(glass_root) / "temperature.npy").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ImageError, match=r"temperature\.npy: not an array of numbers"):
        open_dataset("rgbt_glass_thermal", glass_root, "train")[1]


@pytest.mark.parametrize("shape", [(1, 8, 3), (8, 1, 3), (1, 8, 4), (1, 1, 4)])
def test_pictures_one_pixel_high_or_wide_are_fitted(shape: tuple[int, int, int]) -> None:
    fitted = fit(np.full(shape, 7, np.uint8), (4, 6))
    assert fitted.shape == (4, 6, shape[2])
    assert (fitted == 7).all()


def test_fitted_keeps_every_channel_apart() -> None:
    """A fourth channel is no transparency: a zero there leaves the colours as they are."""

    class One:
        classes, palette, ignore, channels = ("a",), ((1, 2, 3),), 255, 4

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> object:
            image = np.full((8, 8, 4), 200, np.uint8)
            image[..., 3] = 0
            from segmenter.datasets import Sample

            return Sample(image, np.zeros((8, 8), np.uint8), "one")

    fitted = Fitted(One(), (12, 20))[0]  # type: ignore[arg-type]
    assert (fitted.image[..., :3] == 200).all()
    assert not fitted.image[..., 3].any()


def test_a_wider_network_begins_as_the_one_it_was(
    glass_root: Path, tiny_config: SegmenterConfig, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    narrow = Segmenter(replace(tiny_config, classes=("background", "glass"), palette=())).eval()
    save_model(narrow, tmp_path / "narrow")
    dataset = open_dataset("rgbt_glass_thermal", glass_root, "train")
    wide, line = make_network(NetworkOptions(init=tmp_path / "narrow"), dataset, None, 0)
    assert "channel 4 begins at weight 0" in line
    images = dataset[0].image[None]
    assert torch.equal(wide.eval()(normalize(images, wide.config.preprocess)), narrow(normalize(images[..., :3], HALF)))
    wide(normalize(images, wide.config.preprocess))[:, 1].sum().backward()
    gradient = wide.encoder.patch_embed.proj.weight.grad
    assert gradient is not None
    assert gradient[:, 3].abs().max() > 0
    save_model(wide, tmp_path / "wide")
    assert torch.equal(load_model(tmp_path / "wide")(torch.ones(1, 4, 24, 40)), wide(torch.ones(1, 4, 24, 40)))
    with pytest.raises(ConfigError, match="takes images of 4 channels where the dataset's have 3"):
        make_network(NetworkOptions(init=tmp_path / "wide"), open_dataset("rgbt_glass", glass_root, "train"), None, 0)


def test_channels_and_normalisation_must_agree(tiny_config: SegmenterConfig) -> None:
    wide = tiny_config.with_channels(5)
    assert wide.preprocess == Preprocess((0.5,) * 5, (0.5,) * 5)
    assert SegmenterConfig.from_dict(wide.to_dict()) == wide
    with pytest.raises(ConfigError, match="preprocess of 3 channels, encoder of 4"):
        replace(tiny_config, encoder=replace(tiny_config.encoder, channels=4))
    with pytest.raises(ConfigError, match="encoder channels 2"):
        replace(tiny_config.encoder, channels=2)


def test_pictures_of_other_channels_are_refused(tiny_config: SegmenterConfig) -> None:
    predict = predictor(Segmenter(tiny_config.with_channels(4)).eval(), Inference(device="cpu"))
    with pytest.raises(ImageError, match="image of 3 channels: this network takes 4"):
        predict(np.zeros((32, 32, 3), np.uint8))
    assert predict(np.zeros((32, 32, 4), np.uint8)).shape == (32, 32)


def test_engines_take_rgb_alone(tiny_config: SegmenterConfig, tmp_path: Path) -> None:
    from segmenter_engines import open_session
    from segmenter_engines.export import export

    save_model(Segmenter(tiny_config.with_channels(4)), tmp_path / "wide")
    with pytest.raises(EngineError, match="takes images of 4 channels, and engines take RGB alone"):
        export(tmp_path / "wide", tmp_path / "wide.onnx")
    with pytest.raises(EngineError, match="takes images of 4 channels, and engines take RGB alone"):
        open_session(tmp_path / "wide", "eager")


def test_a_run_on_temperatures(glass_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training and evaluation as a user calls them; the network learns what RGB, which is noise, cannot tell."""
    out = tmp_path / "run"
    common = ["--dataset", "rgbt_glass_thermal", "--data", str(glass_root)]
    options = "--decoder linear --width 32 --depth 1 --crop 24 40 --batch 2 --steps 80 --optimizer adamw --lr 3e-3"
    quiet = ["--augment", "flip", "--no-tensorboard", "--workers", "0", "--threads", "1", "--eval-every", "0"]
    assert train([*common, "--out", str(out), *options.split(), *quiet]) == 0
    assert load_model(out / "best").config.encoder.channels == 4
    capsys.readouterr()
    report = tmp_path / "report.json"
    assert evaluate([*common, "--checkpoint", str(out / "best"), "--json", str(report)]) == 0
    miou = float(capsys.readouterr().out.split("mIoU ")[1].split(",")[0])
    assert miou > 0.6


def test_a_probe_widens_a_network_of_fewer_channels(
    glass_root: Path, tmp_path: Path, tiny_config: SegmenterConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(Segmenter(replace(tiny_config, classes=("class 0", "class 1"), palette=())), tmp_path / "rgb")
    common = ["--data", str(glass_root), "--steps", "2", "--batch", "2", "--device", "cpu"]
    wide = [str(tmp_path / "rgb"), "--out", str(tmp_path / "wide"), "--dataset", "rgbt_glass_thermal"]
    assert probe([*wide, *common]) == 0
    assert load_model(tmp_path / "wide").config.encoder.channels == 4
    capsys.readouterr()
    assert probe([str(tmp_path / "wide"), "--out", str(tmp_path / "rgb2"), "--dataset", "rgbt_glass", *common]) == 2
    assert "takes images of 4 channels where the dataset's have 3" in capsys.readouterr().err
