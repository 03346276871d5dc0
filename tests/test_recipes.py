"""Recipes: every one can be run as it says, nothing unknown in one is passed over, and figures have a source."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import tyro
import yaml

from segmenter.config import variant
from segmenter.datasets import DATASETS, classes_of
from segmenter.errors import ConfigError
from segmenter.model import Segmenter
from segmenter.protocol import paper_inference
from segmenter.recipe import FOLDER, STEPS, read_recipe, recipe_names, with_recipe
from segmenter.recipes import main, status
from segmenter.train import main as train
from segmenter.training.options import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
PAPER = {
    "ade20k-seg-ti-mask-16": ("Seg-Ti-Mask/16", 38.1, 38.8),
    "ade20k-seg-s-mask-16": ("Seg-S-Mask/16", 45.3, 46.9),
    "ade20k-seg-b-mask-16": ("Seg-B-Mask/16", 48.5, 50.0),
    "ade20k-seg-l-mask-16": ("Seg-L-Mask/16", 51.8, 53.63),
    "ade20k-seg-b-8": ("Seg-B/8", 49.5, 50.5),
    "ade20k-seg-b-16": ("Seg-B/16", None, None),
    "ade20k-seg-b-deit-16": ("Seg-DeiT-B/16", 47.1, 48.1),
    "ade20k-seg-b-deit-mask-16": ("Seg-DeiT-B-Mask/16", 48.7, 50.1),
    "pascal-context-seg-l-mask-16": ("Seg-L-Mask/16", 58.1, 59.0),
    "cityscapes-seg-l-mask-16": ("Seg-L-Mask/16", 79.1, 81.3),
    "cityscapes-seg-b-mask-16": ("Seg-DeiT-B-Mask/16", None, None),
    "rgbt-glass-seg-b-mask-16": ("Seg-B-Mask/16", None, None),
}


def parsed(arguments):
    """Options of a command as `segmenter` would parse them."""
    module, options_class = STEPS[arguments[0]]
    return tyro.cli(getattr(import_module(module), options_class), args=arguments[1:])


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_run_as_it_says(name):
    recipe = read_recipe(name)
    assert recipe.dataset in DATASETS
    commands = recipe.commands("weights.npz", "data", "runs/x")
    options = {step: parsed(arguments) for step, arguments in commands.items()}
    training, importing = options["train"], options["pretrained"]
    assert training.network.init == Path("runs/x/probed" if recipe.probe is not None else "runs/x/init")
    assert training.length.epochs or training.length.steps or training.length.max_minutes
    if recipe.variant is None:
        assert importing.decoder == recipe.decoder
        return
    size = {"image_size": (importing.height, importing.width)} if importing.height else {}
    with torch.device("meta"):
        model = Segmenter(variant(importing.variant, classes_of(recipe.dataset)[0], **size))
    assert model.config.name == recipe.variant
    assert model.config.decoder.kind == recipe.decoder
    # trained and judged at the crop its positions are made for
    single, multi = (inference_of(options[step], model.config) for step in ("evaluate", "evaluate, multi-scale"))
    assert model.config.encoder.image_size == training.augmentation.crop == (single.window, single.window)
    assert (single.scales, single.flip) == ((1.0,), False)
    assert (multi.scales, multi.flip) == ((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True)
    assert replace(multi, scales=(1.0,), flip=False) == single


def inference_of(options, config):
    """What `evaluate` does with its options."""
    if options.paper is None:
        return options.inference
    return paper_inference(options.dataset, options.paper, config, options.inference)


def test_the_rows_are_the_papers_with_the_figures_it_gives():
    assert set(recipe_names()) == {*PAPER, "camvid-vit-s-14", "camvid-vit-s-14-mask"}
    for name, (network, single, multi) in PAPER.items():
        recipe = read_recipe(name)
        expected = recipe.expected or {}
        assert (recipe.variant, expected.get("miou"), expected.get("miou_multi_scale")) == (network, single, multi)
        assert "source" in expected or not expected
        assert "source" in (recipe.gpu_hours or {"source": ""})


@pytest.mark.parametrize(
    ("dataset", "crops", "batch", "epochs", "lr", "shorter", "stride", "resize"),
    [
        ("ade20k", (512, 640), 8, 64, 1e-3, (None, None), None, None),
        ("pascal_context", (480,), 16, 256, 1e-3, (520, 8), 320, (4160, 520)),
        ("cityscapes", (768,), 8, 216, 1e-2, (1024, 2), 512, (2048, 1024)),
    ],
)
def test_the_rows_are_the_official_configurations(dataset, crops, batch, epochs, lr, shorter, stride, resize):
    for recipe in filter(lambda recipe: recipe.dataset == dataset, map(read_recipe, PAPER)):
        options = parsed(recipe.commands("w", "d", "o")["train"])
        rates = options.optimizer
        assert options.augmentation.crop[0] in crops
        assert (options.length.batch, options.length.epochs, rates.lr) == (batch, epochs, lr)
        # timm 0.4.12, which makes the official code's optimiser, has Nesterov's momentum in what it calls sgd
        assert (rates.optimizer, rates.momentum, rates.nesterov, rates.weight_decay) == ("sgd", 0.9, True, 0.0)
        assert (rates.min_lr, rates.power, rates.amp) == (1e-5, 0.9, "off")
        given, crop = options.augmentation, options.augmentation.crop[0]
        assert (given.scale, given.short_side, given.long_ratio) == ((0.5, 2.0), *shorter)
        evaluation = parsed(recipe.commands("w", "d", "o")["evaluate"])
        config = variant(recipe.variant, classes_of(dataset)[0], image_size=(crop, crop))
        inference = inference_of(evaluation, config)
        assert (inference.window, inference.stride) == (crop, stride or crop)
        assert inference.resize == (resize or (4 * crop, crop))


def test_camvid_is_what_make_camvid_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = {}
    for line in makefile.partition("\ncamvid:")[2].splitlines():
        words = shlex.split(line.replace("$(BIN)/", "").replace("$(WEIGHTS)", "w").replace("$(CAMVID)", "d"))
        if words[:1] == ["segmenter"] and words[1] in STEPS:
            steps.setdefault(words[1], [word.replace("$(RUN)", "runs/x") for word in words[1:]])
    ours = read_recipe("camvid-vit-s-14").commands("w", "d", "runs/x")
    assert steps.keys() == ours.keys() - {"evaluate"}
    for step, arguments in steps.items():
        assert parsed(arguments) == parsed(ours[step])


def test_reproduced_figures_are_those_of_their_file():
    recipe = read_recipe("camvid-vit-s-14")
    rows = json.loads((ROOT / recipe.status["file"]).read_text(encoding="utf-8"))["rows"]
    (figure,) = (row["miou"] for row in rows if row["engine"] == "eager")
    assert recipe.status["miou"] == round(100 * figure, 2)
    assert status(recipe) == f"reproduced: mIoU {recipe.status['miou']} ({recipe.status['file']})"
    mask = read_recipe("camvid-vit-s-14-mask")
    runs = json.loads((ROOT / mask.status["file"]).read_text(encoding="utf-8"))["runs"]
    (figure,) = (run["miou"] for run in runs if run["decoder"] == "mask")
    assert mask.status["miou"] == round(100 * figure, 2)


def test_the_command_lists_all_and_shows_one_as_commands(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main([]) == 0
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    rows = {name: cells for name, *cells in lines if name in recipe_names()}
    assert list(rows) == sorted(recipe_names())
    assert rows["ade20k-seg-b-mask-16"] == ["48.5", "50.0", "-", "51", "not run here: needs ADE20K and GPUs"]
    assert main(["cityscapes-seg-l-mask-16", "--data", "/my data", "--weights", "vit.npz", "--out", "run"]) == 0
    out = capsys.readouterr().out
    shown = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("segmenter ")]
    wanted = read_recipe("cityscapes-seg-l-mask-16").commands("vit.npz", "/my data", "run")
    assert shown == list(wanted.values())
    assert "miou 79.1, miou multi scale 81.3, source official README" in out


def expanded(*arguments):
    return tyro.cli(TrainOptions, args=with_recipe(["--out", "run", *arguments]))


def test_train_takes_a_recipe_under_explicit_options():
    options = expanded("--recipe", "cityscapes-seg-l-mask-16", "--init", "init", "--data", "d")
    assert options.dataset == "cityscapes"
    assert (options.optimizer.lr, options.length.epochs, options.augmentation.crop) == (0.01, 216, (768, 768))
    options = expanded(
        "--recipe=cityscapes-seg-l-mask-16", "--variant", "Seg-Ti/16", "--crop", "64", "32", "--min_lr=0.5"
    )
    assert (options.network.variant, options.augmentation.crop, options.optimizer.min_lr) == (
        "Seg-Ti/16",
        (64, 32),
        0.5,
    )
    assert options.length.batch == 8
    options = expanded("--recipe", "camvid-vit-s-14", "--init", "i", "--dataset", "folder", "--max-minutes", "1")
    assert (options.dataset, options.length.max_minutes, options.optimizer.warmup) == ("folder", 1.0, 10)
    assert with_recipe(["--out", "run"]) == ["--out", "run"]


def test_a_recipe_of_weights_needs_them(capsys):
    assert train(["--recipe", "ade20k-seg-b-mask-16", "--data", "d", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert "segmenter recipes ade20k-seg-b-mask-16" in error
    assert error.count("\n") == 1
    assert train(["--recipe", "mars", "--out", "run"]) == 2
    assert "no recipe 'mars'; `segmenter recipes` lists them" in capsys.readouterr().err
    assert train(["--recipe", "ade20k-seg-b-mask-16", "--help"]) == 0


def test_reading_one_for_training_does_not_load_pytorch():
    program = (
        "import sys; from segmenter.recipe import with_recipe;"
        " with_recipe(['--recipe', 'ade20k-seg-b-mask-16', '--init', 'x']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sgd"}, "a recipe has an unknown key 'optimizer'"),
        ({"train": {"batch": 8, "lrr": 1}}, "train has an unknown key 'lrr'"),
        ({"train": [1]}, "train: wanted a mapping, got list"),
        ({"train": {"crop": {"height": 3}}}, "train crop .*wanted numbers, text"),
        ({"evaluate": {"windows": 3}}, "evaluate has an unknown key 'windows'"),
        ({"multi_scale": {"flips": True}}, "multi_scale has an unknown key 'flips'"),
        ({"expected": {"mIoU": 3}}, "expected has an unknown key 'mIoU'"),
        ({"weights": {"url": "x"}}, "weights lacks 'file'"),
        ({"row": 3}, "row 3: wanted text"),
        ({"status": {}}, "status: wanted either not_run"),
        ({"status": None}, "status: wanted a mapping"),
        ({"dataset": ...}, "a recipe lacks 'dataset'"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, change, message):
    values = yaml.safe_load((FOLDER / "ade20k-seg-b-mask-16.yaml").read_text(encoding="utf-8")) | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not ...}))
    with pytest.raises(ConfigError, match=f"mine.yaml: {message}"):
        read_recipe(str(path))


def test_a_file_of_ones_own_is_read_and_a_broken_one_named(tmp_path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="No such file"):
        read_recipe(str(path))
    path.write_text("row: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        read_recipe(str(path))
    path.write_text(
        "row: mine\ndataset: shapes\ndecoder: mask\ntrain: {width: 64, steps: 3}\nstatus: {not_run: not yet}\n"
    )
    options = expanded("--recipe", str(path))
    assert (options.dataset, options.network.width, options.length.steps) == ("shapes", 64, 3)
