"""What layers cost alone, and the search that keeps the costly ones in floating point."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from segmenter.errors import ConfigError, EngineError
from segmenter_engines import quantize as quantize_command
from segmenter_engines import sensitivity as sensitivity_command
from segmenter_engines.judge import Judge, Score
from segmenter_engines.layer_costs import costs, groups
from segmenter_engines.manifest import read_manifest
from segmenter_engines.mixed import fewest, search
from segmenter_engines.qdq import layer_name, linears, quantised_layers
from segmenter_engines.quantize import quantize
from segmenter_engines.recipe import Recipe, calibrated
from segmenter_engines.sensitivity import report
from tests.networks import CLASSES
from tests.small_engines import pictures
from tests.test_verify import Pictures


@pytest.fixture(scope="module")
def spiky(engine_folder, tmp_path_factory):
    """The fp32 graph with one layer that 8 bits ruin: an outlier of its weights in every channel."""
    folder = tmp_path_factory.mktemp("spiky")
    model = onnx.load(engine_folder / "model.fp32.onnx")
    (layer,) = (layer for layer in linears(model.graph) if "encoder.blocks.1.mlp.fc2" in layer.weight)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == layer.weight)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] = 40.0 * np.abs(values).max()
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / "m.onnx")
    from dataclasses import replace

    from segmenter.files import sha256

    manifest = read_manifest(engine_folder / "model.fp32.onnx")
    replace(manifest, artifact="m.onnx", sha256=sha256(folder / "m.onnx")).write(folder / "m.onnx")
    return folder / "m.onnx"


@pytest.fixture(scope="module")
def ready(spiky):
    return calibrated(spiky, pictures(2), Recipe(), threads=1)


@pytest.fixture(scope="module")
def judge(spiky):
    from segmenter_engines import open_session

    with open_session(spiky, threads=1) as session:
        samples = Pictures(session)  # the truth is what the graph says: its own mIoU is 1
    return Judge(spiky, read_manifest(spiky), samples, threads=1)


def test_the_layer_that_8_bits_ruin_is_named(ready, judge):
    found = report(ready, judge)
    assert found["reference_miou"] == 1.0
    assert (found["images"], found["calibration_images"]) == (4, 2)
    layers = {row["name"]: row for row in found["layers"]}
    assert len(layers) == len(ready.layers) == 13
    worst = min(layers.values(), key=lambda row: row["sqnr_db"])
    assert worst["name"] == "encoder.blocks.1.mlp.fc2"
    assert worst["drop"] > 0.02
    rest = [row["drop"] for row in layers.values() if row is not worst]
    assert worst["drop"] > max(rest)
    together = {row["name"]: row for row in found["groups"]}
    assert together["encoder.blocks.1"]["layers"] == 4
    assert together["all mlp.fc2"]["layers"] == 3
    assert together["all"]["sqnr_db"] < worst["sqnr_db"] + 1
    json.dumps(found)


def test_quantising_nothing_costs_nothing(ready, judge):
    (nothing,) = costs(ready, judge, {"nothing": []})
    assert nothing.miou == 1.0
    assert nothing.sqnr_db > 100  # smoothing multiplies in another order


@pytest.mark.parametrize(
    ("length", "count", "places"),
    [(4, 2, [0, 2]), (7, 4, [0, 1, 3, 5]), (15, 4, [0, 3, 7, 11]), (3, 4, [0, 1, 2]), (3, 0, [0, 1, 2])],
)
def test_a_judge_sees_some_images_evenly_spread(ready, judge, monkeypatch, length, count, places):
    class Seen:
        classes, ignore, seen = judge.samples.classes, judge.samples.ignore, []

        def __len__(self):
            return length

        def __getitem__(self, index):
            self.seen.append(index)
            return honest[0]

    honest = judge.samples
    monkeypatch.setattr(judge, "_masks", judge._masks[:1] * length)
    monkeypatch.setattr(judge, "_matrices", judge._matrices[:1] * length)
    monkeypatch.setattr(judge, "samples", Seen())
    judge(ready.model, count)
    assert judge.samples.seen == places


def test_groups_hold_every_layer_once_by_block_and_by_kind():
    layers = [f"model.encoder.blocks.{i}.{kind}.weight" for i in (0, 10) for kind in ("attn.qkv", "mlp.fc1")]
    found = groups(layers)
    assert set(found) == {"encoder.blocks.0", "encoder.blocks.10", "all attn.qkv", "all mlp.fc1", "all"}
    assert found["all attn.qkv"] == [layers[0], layers[2]]
    assert layer_name(layers[3]) == "encoder.blocks.10.mlp.fc1"


def test_the_search_keeps_what_is_needed_and_no_more(spiky, ready, judge, tmp_path):
    found = search(ready, judge, 0.02)
    assert found.ranking[0].name == "encoder.blocks.1.mlp.fc2"
    chosen = {trial.kept: trial for trial in found.trials}
    most = [chosen[kept].drop + chosen[kept].drop_error for kept in (len(found.kept), len(found.kept) - 1)]
    assert most[0] <= 0.02 < most[1]
    manifest = quantize(spiky, tmp_path / "m.onnx", pictures(2), judge=judge, max_drop=0.02, threads=1)
    mixed = manifest.details["mixed"]
    assert [row["name"] for row in mixed["kept"]] == [layer_name(weight) for weight in found.kept]
    assert manifest.details["layers"] == 13 - len(found.kept)
    assert set(quantised_layers(onnx.load(tmp_path / "m.onnx").graph)) == set(ready.layers) - set(found.kept)
    assert judge(onnx.load(tmp_path / "m.onnx")).miou == pytest.approx(chosen[len(found.kept)].miou)
    assert mixed["reference_miou"] == 1.0
    assert mixed["images"] == 4


def test_the_search_is_bounded_and_finds_the_fewest():
    for layers in (1, 2, 13, 57):
        for needed in range(layers):
            asked = []
            assert fewest(layers, lambda kept: asked.append(kept) or kept >= needed) == needed  # noqa: B023
            assert len(asked) <= 2 * np.log2(max(layers, 2)) + 2
        assert fewest(layers, lambda kept: False) is None


class Told:
    """A judge who finds for every number of layers in floating point the drop and its standard error it is told."""

    reference, split = 0.9, "train"

    def __init__(self, ready, told, images=4):
        self.layers, self.told, self.images = len(ready.layers), told, images

    def __call__(self, model, images=0):
        kept = self.layers - len(quantised_layers(model.graph))
        drop, error = self.told(kept)
        return Score(self.reference - drop, 30.0, error)

    def __len__(self):
        return self.images


def test_a_drop_no_choice_holds_is_refused(ready):
    hopeless = Told(ready, lambda kept: (0.4, 0.01))
    message = r"--max-drop 0\.1: .* loses 0\.4000 of mIoU, standard error 0\.0100, even with one layer in 8 bits"
    with pytest.raises(EngineError, match=message):
        search(ready, hopeless, 0.1)


def test_a_setting_that_may_have_been_lucky_with_its_images_does_not_hold(ready):
    found = search(ready, Told(ready, lambda kept: (0.0038, 0.0005 if kept < 3 else 0.0001)), 0.004)
    assert len(found.kept) == 3
    assert [(trial.kept, trial.drop_error) for trial in found.trials][:2] == [(0, 0.0005), (1, 0.0005)]
    # where the error cannot be told, nothing holds; one image never tells it
    with pytest.raises(EngineError, match=r"loses 0\.0000 of mIoU, standard error unknown, even"):
        search(ready, Told(ready, lambda kept: (0.0, None)), 0.004)
    with pytest.raises(EngineError, match=r"--max-drop 0\.004: 1 image to judge on tells no standard error; take"):
        search(ready, Told(ready, lambda kept: (0.0, None), images=1), 0.004)


def test_a_judge_tells_the_standard_error_of_a_drop(ready, judge):
    assert judge(ready.model).drop_error == 0.0
    rough = judge(ready.quantised())
    assert 0.0 < rough.drop_error < judge.reference - rough.miou + 0.1
    assert judge(ready.quantised(), 1).drop_error is None


@pytest.mark.parametrize("command", [quantize_command, sensitivity_command])
def test_what_is_chosen_is_judged_on_training_images_that_calibration_left(
    spiky, picture_root, tmp_path, monkeypatch, capsys, command
):
    judged = []

    def spy(source, base, samples, **options):
        judged.append([samples[index].name for index in range(len(samples))])
        return Judge(source, base, samples, **options)

    monkeypatch.setattr(command, "Judge", spy)
    more = ["--max-drop", 0.9, "--out", tmp_path / "q.onnx"] if command is quantize_command else []
    for chosen, names in (
        ([], ["p1.png", "p2.png"]),  # of three, p0 is the calibration image
        (["--seed", 3], ["p0.jpg", "p1.png"]),
        (["--judge-split", "val"], ["p0.jpg", "p1.png"]),
    ):
        assert command.main(command_line(picture_root, spiky, *more, *chosen)) == 0
        assert judged.pop() == names
        assert f"2 images of {'val' if 'val' in chosen else 'train'}" in capsys.readouterr().out
    if command is quantize_command:
        assert read_manifest(tmp_path / "q.onnx").details["mixed"]["split"] == "val"
    assert command.main([*command_line(picture_root, spiky, *more), "--images", "3"]) == 2
    assert "--judge-split train: calibration takes all of its 3 images; lower --images" in capsys.readouterr().err


def command_line(picture_root, spiky, *more):
    (picture_root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    data = ["--dataset", "folder", "--data", str(picture_root), "--images", "1", "--threads", "1"]
    return [str(spiky), *data, *map(str, more)]


def test_the_commands_write_their_reports(spiky, picture_root, tmp_path, capsys):
    out = tmp_path / "report.json"
    arguments = command_line(picture_root, spiky, "--judge-images", 1, "--seed", 3, "--out", out)
    assert sensitivity_command.main(arguments) == 0
    assert "encoder.blocks.1.mlp.fc2" in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert (told["recipe"]["precision"], told["split"]) == ("int8", "train")
    arguments = command_line(picture_root, spiky, "--max-drop", 0.9, "--judge-images", 2, "--out", tmp_path / "q.onnx")
    assert quantize_command.main(arguments) == 0
    assert "kept in floating point: nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        (sensitivity_command, ["--out", "report.txt"], "--out report.txt: is written as JSON"),
        (sensitivity_command, ["--seed", "-1"], "seed -1: wanted 0 or more"),
        (sensitivity_command, ["--judge-images", "-1"], "-1 images of a dataset: wanted at least 1"),
        (sensitivity_command, ["--judge-split", "test"], "split 'test': wanted one of"),
        (sensitivity_command, ["--precision", "fp8"], "an fp32 graph, while fp8 is for TensorRT"),
        (quantize_command, ["--max-drop", "1.5"], "--max-drop 1.5: wanted a loss of mIoU from 0 to 1"),
        (quantize_command, ["--checkpoint", "x"], "--checkpoint x: is what --max-drop is judged against"),
        (quantize_command, ["--max-drop", "0.1", "--judge-split", "x"], "split 'x': wanted one of"),
        (quantize_command, ["--scales-of", "none.onnx"], "none.onnx: no such engine file"),
    ],
)
def test_wrong_options_are_one_line(spiky, picture_root, tmp_path, monkeypatch, capsys, command, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    out = [] if command is sensitivity_command else ["--out", "q.onnx"]
    assert command.main([*command_line(picture_root, spiky), *out, *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not (tmp_path / "q.onnx").exists()


def test_a_judge_refuses_other_classes_no_images_and_another_checkpoint(spiky, judge, tmp_path):
    base = read_manifest(spiky)
    with pytest.raises(ConfigError, match="knows 5 classes where the dataset has 2"):
        Judge(spiky, base, SimpleNamespace(classes=("a", "b")))
    with pytest.raises(EngineError, match="no images to judge on"):
        Judge(spiky, base, type("None", (), {"classes": CLASSES, "__len__": lambda self: 0})())
    from segmenter.checkpoint import save_model
    from tests.networks import small_network

    save_model(small_network(seed=1), tmp_path / "other")
    with pytest.raises(EngineError, match="made of other weights"):
        Judge(spiky, base, judge.samples, checkpoint=tmp_path / "other")
