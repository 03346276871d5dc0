"""Fine-tuning under quantisation: gradients, the same numbers as the graph, and accuracy won back."""

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto

from segmenter.checkpoint import load_model, save_model
from segmenter.datasets import open_dataset
from segmenter.errors import EngineError
from segmenter.files import sha256
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter_engines import qat as qat_command
from segmenter_engines.calibrate import ranges
from segmenter_engines.export import export
from segmenter_engines.fake_quant import fake, fake_quantised
from segmenter_engines.folder import FP32, INT8_TENSORRT
from segmenter_engines.folder import INT8 as INT8_CPU
from segmenter_engines.formats import FP8, INT8, UINT8, activation_format
from segmenter_engines.manifest import read_manifest
from segmenter_engines.qat import prepare
from segmenter_engines.qdq import quantised_layers, weight_scale
from segmenter_engines.quantize import quantize
from segmenter_engines.recipe import Recipe, calibrated, graph_input
from segmenter_engines.steps import Range, steps_over
from tests.small_engines import masks, network, pictures


def test_a_gradient_passes_rounding_and_stops_beyond_the_range():
    x = torch.tensor([0.3, -1.26, 300.0, -300.0], requires_grad=True)
    y = fake(x, torch.tensor(0.5), 0, INT8)
    assert y.tolist() == [0.5, -1.5, 63.5, -64.0]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("real", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("form", [INT8, FP8], ids=["int8", "fp8"])
def test_every_weight_learns_whatever_its_scale_was_rounded_to(form, real):
    """A channel's largest weight is the format's largest number: rounded to it, and not clipped."""
    weight = (0.03 * torch.randn(500, 96, generator=torch.Generator().manual_seed(0))).requires_grad_()
    fake(weight, weight_scale(weight.detach(), form, real, axis=1), 0, form).sum().backward()
    assert (weight.grad == 1.0).all()


@pytest.mark.parametrize(
    ("form", "scale", "zero", "low", "high"),
    [
        (INT8, 0.5, 0, -128.5, 127.5),
        (UINT8, 0.25, 40, -40.5, 215.5),
        (FP8, 2.0, 0, -464.0, 464.0),  # half of 32, as far apart as its largest numbers are
    ],
    ids=["int8", "uint8", "fp8"],
)
def test_a_gradient_stops_where_rounding_clips(form, scale, zero, low, high):
    x = scale * torch.tensor([low - 0.1, low + 0.1, 0.0, high - 0.1, high + 0.1])
    x.requires_grad_()
    fake(x, torch.tensor(scale), zero, form).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ready(engine_folder):
    """The small network's fp32 graph, LayerScale folded, smoothed and calibrated as its int8 graph was."""
    return calibrated(engine_folder / FP32, pictures(4, seed=1), Recipe(), threads=1)


@pytest.mark.parametrize(
    ("precision", "target"),
    [("int8", "cpu"), ("int8", "tensorrt"), ("fp8", "tensorrt")],
    ids=["int8-cpu", "int8-trt", "fp8"],
)
def test_pytorch_computes_what_the_graph_does(engine_folder, ready, precision, target):
    """To rounding: sums in another order take a value beside a tie the other way, and layers behind it see that."""
    images = [graph_input(picture, ready.base) for picture in pictures(4, seed=1)]
    form = activation_format(precision, target)
    spans = ranges(ready.model, list(ready.steps), images, threads=1)
    steps = {name: steps_over(span, form, TensorProto.FLOAT) for name, span in spans.items()}
    graph = replace(ready, recipe=Recipe(precision), target=target, steps=steps).quantised()
    model, _, _ = prepare(engine_folder / "checkpoint", engine_folder / INT8_CPU)
    batch = normalize(pictures(2), model.config.preprocess)
    theirs = masks(graph, batch.numpy())
    layers = quantised_layers(graph.graph)
    assert len(layers) == 13
    with torch.no_grad():
        whole = model.masks(batch).numpy()
        with fake_quantised(model, layers, TensorProto.FLOAT):
            ours = model.masks(batch).numpy()
        np.testing.assert_array_equal(model.masks(batch).numpy(), whole)  # and the network is itself again
    assert np.square(ours - theirs).mean() < 0.03 * np.square(theirs - whole).mean()


def test_a_smoothed_network_is_the_same_in_floating_point(engine_folder):
    model, _, _ = prepare(engine_folder / "checkpoint", engine_folder / INT8_CPU)
    original = load_model(engine_folder / "checkpoint")
    norms = [module.norm1.weight for module in (model.encoder.blocks[0], original.encoder.blocks[0])]
    assert not torch.allclose(*norms, rtol=0.01)
    batch = normalize(pictures(1), original.config.preprocess)
    with torch.no_grad():
        torch.testing.assert_close(model.masks(batch), original.masks(batch), rtol=1e-3, atol=1e-3)


def test_every_parameter_learns_through_the_rounding(engine_folder):
    model, layers, real = prepare(engine_folder / "checkpoint", engine_folder / INT8_CPU)
    with fake_quantised(model, layers, real):
        model.masks(normalize(pictures(1), model.config.preprocess)).square().sum().backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def test_scales_are_taken_from_another_graph_as_they_are(engine_folder, tmp_path):
    quantize(engine_folder / "model.fp16.onnx", tmp_path / "m.onnx", scales_of=engine_folder / INT8_TENSORRT)
    ours, theirs = (
        quantised_layers(onnx.load(path).graph) for path in (tmp_path / "m.onnx", engine_folder / INT8_TENSORRT)
    )
    assert ours == theirs


@pytest.mark.parametrize(("base", "precision"), [("fp32", "int8"), ("fp16", "int8"), ("fp16", "fp8")])
def test_scales_are_taken_as_they_are_from_any_ranges(engine_folder, tmp_path, monkeypatch, base, precision):
    """Near where an activation is taken for one-sided, what is rounded may not be decided on again."""
    random = np.random.default_rng(0)

    def some(model, tensors, *_, **__):
        spans = [Range(-0.1134, 0.45642)]
        for high in 10.0 ** random.uniform(-1.0, 1.2, len(tensors)):
            spans.append(Range(-high * random.uniform(0.24, 0.26), high))
        return dict(zip(tensors, spans, strict=False))

    monkeypatch.setattr("segmenter_engines.recipe.ranges", some)
    source = engine_folder / f"model.{base}.onnx"
    for _ in range(5):
        quantize(source, tmp_path / "recipe.onnx", pictures(1), precision=precision, smoothing=0.0)
        quantize(source, tmp_path / "m.onnx", scales_of=tmp_path / "recipe.onnx")
        ours, theirs = (quantised_layers(onnx.load(tmp_path / name).graph) for name in ("m.onnx", "recipe.onnx"))
        assert ours == theirs


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A network of small pictures it has learnt, its fp32 graph, and a recipe that clips far too much."""
    root = tmp_path_factory.mktemp("learnt")
    rng = np.random.default_rng(0)
    from PIL import Image

    for split, count in (("train", 4), ("val", 4)):
        for kind in ("images", "masks"):
            (root / "data" / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = rng.integers(0, 3, (4, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            image = (mask[..., None] * 80 + rng.integers(0, 60, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(image).save(root / "data" / "images" / split / f"p{index}.png")
            Image.fromarray(mask).save(root / "data" / "masks" / split / f"p{index}.png")
    (root / "data" / "classes.txt").write_text("ground\nwall\nsky\n", encoding="utf-8")
    config = network().config
    encoder = replace(config.encoder, patch_size=8, image_size=(32, 32), width=32, mlp_width=64, layer_scale=False)
    decoder = replace(config.decoder, width=32, mlp_width=64)
    torch.manual_seed(0)
    model = Segmenter(replace(config, encoder=encoder, decoder=decoder, classes=("ground", "wall", "sky"), palette=()))
    samples = open_dataset("folder", root / "data", "train")
    images = normalize(np.stack([samples[index].image for index in range(4)]), config.preprocess)
    labels = torch.from_numpy(np.stack([samples[index].labels for index in range(4)])).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    save_model(model.eval(), root / "checkpoint")
    export(root / "checkpoint", root / "fp32.onnx")
    quantize(
        root / "fp32.onnx",
        root / "coarse.onnx",
        [samples[index].image for index in range(4)],
        method="percentile",
        percentile=60.0,
        smoothing=0.3,
    )
    return root


def command(learnt, out, *more):
    data = ["--dataset", "folder", "--data", learnt / "data", "--workers", 0, "--augment", "none", "--batch", 4]
    recipe = ["--recipe", learnt / "coarse.onnx", "--out", out]
    return [str(part) for part in (learnt / "checkpoint", *recipe, *data, *more)]


def test_a_short_run_wins_back_what_a_coarse_setting_lost(learnt, tmp_path, capsys):
    assert qat_command.main(command(learnt, tmp_path / "qat", "--steps", 60, "--lr", 2e-3)) == 0
    told = capsys.readouterr().out
    whole, before, after = map(float, re.findall(r"(0\.\d+)(?: in| quantised)", told))
    assert before < whole - 0.05
    assert after > before + 0.5 * (whole - before)
    # the deployed graph has the recipe's scales and the trained weights: the same mIoU as was announced
    export(tmp_path / "qat", tmp_path / "fp32.onnx")
    made = quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", scales_of=learnt / "coarse.onnx")
    assert made.details["calibration"]["scales_of"].startswith("sha256:")
    ours, theirs = (
        quantised_layers(onnx.load(path).graph) for path in (tmp_path / "int8.onnx", learnt / "coarse.onnx")
    )
    assert set(ours) == set(theirs)
    for name, layer in ours.items():
        assert layer.steps == theirs[name].steps
    from segmenter.evaluation import evaluate_labels
    from segmenter_engines import open_session

    with open_session(tmp_path / "int8.onnx", "onnxruntime", threads=1) as session:
        miou = evaluate_labels(session, open_dataset("folder", learnt / "data", "val"), progress=False).miou
    assert miou == pytest.approx(after, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--steps", "0"], "--steps 0: wanted at least 1"),
        (["--batch", "0"], "--batch 0: wanted at least 1"),
        (["--lr", "0"], "--lr 0.0: wanted more than 0"),
        (["--augment", "much"], "--augment much: wanted one of paper, mild, flip, none"),
        (["--workers", "-1"], "--workers -1: wanted 0 or more"),
        (["--seed", "-1"], "--seed -1: wanted 0 or more"),
        (["--loss-stride", "3"], "loss stride 3 does not divide the patch size 8"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)
def test_wrong_options_are_one_line(learnt, tmp_path, arguments, complaint, capsys):
    assert qat_command.main(command(learnt, tmp_path / "qat", *arguments)) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not (tmp_path / "qat").exists()


def test_weights_that_the_last_update_broke_are_not_written(learnt, tmp_path, monkeypatch, capsys):
    def broken(optimizer):
        optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    assert qat_command.main(command(learnt, tmp_path / "qat", "--steps", "1")) == 2
    assert "training came apart at step 1: the loss or a weight is no longer a number" in capsys.readouterr().err
    assert not (tmp_path / "qat").exists()


def test_recipes_that_are_none_or_of_other_weights_are_refused(learnt, engine_folder, tmp_path):
    with pytest.raises(EngineError, match=r"is fp32 onnx; wanted a graph that `segmenter quantize` made"):
        prepare(learnt / "checkpoint", learnt / "fp32.onnx")
    with pytest.raises(EngineError, match="made of other weights"):
        prepare(engine_folder / "checkpoint", learnt / "coarse.onnx")
    with pytest.raises(EngineError, match=r"is fp32 onnx; wanted a graph that `segmenter quantize` made"):
        quantize(learnt / "fp32.onnx", tmp_path / "m.onnx", scales_of=learnt / "fp32.onnx")
    few = onnx.load(learnt / "fp32.onnx")
    for tensor in few.graph.initializer:
        tensor.name = tensor.name.replace("blocks.1", "blocks.7")
    for node in few.graph.node:
        node.input[:] = [name.replace("blocks.1", "blocks.7") for name in node.input]
    onnx.save(few, tmp_path / "few.onnx")
    base = read_manifest(learnt / "fp32.onnx")
    replace(base, artifact="few.onnx", sha256=sha256(tmp_path / "few.onnx")).write(tmp_path / "few.onnx")
    with pytest.raises(EngineError, match=r"quantises model\.encoder\.blocks\.1\..*, which .* has not"):
        quantize(tmp_path / "few.onnx", tmp_path / "m.onnx", scales_of=learnt / "coarse.onnx")
    model, layers, _ = prepare(engine_folder / "checkpoint", engine_folder / "model.int8.onnx")
    strange = {"model.encoder.blocks.9.attn.qkv.weight": next(iter(layers.values()))}
    with (
        pytest.raises(EngineError, match=r"quantises encoder\.blocks\.9\.attn\.qkv"),
        fake_quantised(model, strange, TensorProto.FLOAT),
    ):
        pass
