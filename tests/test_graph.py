"""Exported graphs between sizes, of pixels, and with confidences: what PyTorch computes, in every runtime."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf.message import EncodeError

from segmenter.config import variant
from segmenter.errors import EngineError
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter_engines import export as export_command
from segmenter_engines import open_session
from segmenter_engines.build import build
from segmenter_engines.export import export
from segmenter_engines.folder import FP16, FP32
from segmenter_engines.graph import OUTPUTS
from segmenter_engines.graph_file import write_graph
from segmenter_engines.manifest import read_manifest
from segmenter_engines.quantize import quantize
from tests.networks import small_network
from tests.small_engines import HEIGHTS, PIXELS, RANGED, WIDTHS, network, pictures

# its own size; another shape with as many patches, 2x10 for 4x5, which embeddings are not resized for; odd; a single
# patch high; larger both ways
SIZES = ((64, 80), (32, 160), (47, 99), (16, 131), (160, 113))


def close(session, model, size, batch):
    """Compares labels, masks, logits and confidences with PyTorch's at one size and batch."""
    x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        masks, logits = model.masks(x), model(x)
    results = dict(zip(OUTPUTS, session({"images": x.numpy()}), strict=True))
    np.testing.assert_allclose(results["masks"], masks, rtol=0, atol=1e-4)
    np.testing.assert_allclose(results["logits"], logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(results["confidence"], logits.softmax(1).amax(1), rtol=0, atol=1e-4)
    assert results["labels"].dtype == np.uint8
    assert results["labels"].shape == (batch, *size)
    assert (results["labels"] != logits.argmax(1).numpy()).mean() <= 1e-3


def runtime(path, name):
    """A graph as a function of its feed, all outputs in order."""
    if name == "onnxruntime":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(list(OUTPUTS), feed)
    pytest.importorskip("openvino", reason="openvino is not installed")
    from segmenter_engines.sessions.openvino import shared_core

    compiled = shared_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feed):
        results = compiled(feed)
        return [results[output] for output in OUTPUTS]

    return run


@pytest.fixture(scope="module", params=["bilinear", "bicubic", "dinov2", "rotary"])
def ranged(request, ranged_folder, tmp_path_factory):
    """A graph of all outputs between sizes and its network, for each way to resize position embeddings and for none."""
    if request.param == "bilinear":
        return ranged_folder / RANGED, network()
    way = {"positions": "rotary"} if request.param == "rotary" else {"position_resize": request.param}
    model = small_network("linear", depth=1, image_size=(64, 80), **way)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    export(model, path, height=HEIGHTS, width=WIDTHS, batch=(1, 1, 4), outputs=OUTPUTS)
    return path, model


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_between_sizes_computes_what_pytorch_does(ranged, engine):
    path, model = ranged
    session = runtime(path, engine)
    for size in SIZES:
        for batch in (1, 3):
            close(session, model, size, batch)


def test_sides_may_be_a_range_each_or_not_at_all(tmp_path):
    model = small_network("linear", patch_size=14, image_size=(70, 56))
    path = tmp_path / "m.onnx"
    manifest = export(model, path, height=(15, 20, 28), width=50, batch=2, outputs=OUTPUTS)
    assert (manifest.height, manifest.width, manifest.batch) == ((15, 20, 28), (50, 50, 50), (2, 2, 2))
    shape = [dim.dim_param or dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert shape == [2, 3, "H", 50]
    session = runtime(path, "onnxruntime")
    for height in (15, 28):
        close(session, model, (height, 50), 2)


def test_the_graph_says_what_it_takes_and_gives(ranged_folder):
    model = onnx.load(ranged_folder / PIXELS)
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert dims == {
        "images": ["B", "H", "W", 3],
        "labels": ["B", "H", "W"],
        "masks": ["B", 5, "H_patches", "W_patches"],
        "confidence": ["B", "H", "W"],
    }
    config = network().config
    facts = {prop.key: prop.value for prop in model.metadata_props}
    assert facts["palette"].split("\n") == [" ".join(map(str, colour)) for colour in config.palette]
    assert (facts["input"], facts["patch_size"], facts["colour_order"]) == ("pixels", "16", "RGB")
    manifest = read_manifest(ranged_folder / PIXELS)
    assert (manifest.input, manifest.height, manifest.width) == ("pixels", HEIGHTS, WIDTHS)
    assert manifest.outputs == ("labels", "masks", "confidence")
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["LayerNormalization"] == 9
    assert counts["Gelu"] == 3
    assert counts["Resize"] == 1  # labels and confidences share it


def test_a_fixed_size_has_its_position_embeddings_resized_before(engine_folder):
    graph = onnx.load(engine_folder / "model.fp32.onnx").graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["Resize"] == 1  # of the labels
    assert not {"Range", "Where", "Abs"} & set(counts)
    assert [1, 2 + 4 * 5, 64] in [list(tensor.dims) for tensor in graph.initializer]


def test_pixels_are_normalised_bit_for_bit(ranged_folder):
    """Class masks of both graphs are the same to the last bit, so what they were made of is."""
    images = pictures(2, 64, 80)
    images[0].reshape(-1, 3)[:256] = np.arange(256)[:, None]  # every value in every channel
    feed = normalize(images, network().config.preprocess).numpy()
    names = ["labels", "masks", "confidence"]
    sessions = [onnxruntime.InferenceSession(ranged_folder / name) for name in (PIXELS, RANGED)]
    mine, theirs = (session.run(names, {"images": x}) for session, x in zip(sessions, (images, feed), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_pixels_between_sizes_are_quantised_at_the_usual_one(ranged_folder, reference, tmp_path):
    manifest = quantize(ranged_folder / PIXELS, tmp_path / "m.onnx", pictures(4, seed=1), threads=1)
    assert (manifest.height, manifest.width, manifest.details["layers"]) == (HEIGHTS, WIDTHS, 13)
    images = pictures(4, 96, 64, seed=2)
    with open_session(tmp_path / "m.onnx", threads=1) as session:
        noise = session.logits(images) - (truth := reference.logits(images))
    # as of a fixed size, see test_sessions
    assert 10 * np.log10(np.square(truth).sum() / np.square(noise).sum()) > 41 - 14 - 6


@pytest.mark.parametrize(("precision", "engine"), [("fp16", "onnxruntime"), ("bf16", "openvino")])
def test_16_bit_graphs_between_sizes_are_as_close_as_fixed_ones(tmp_path, precision, engine):
    """In one runtime, which may round between more ops than PyTorch does; ONNX Runtime has no bfloat16 on a CPU."""
    images = normalize(pictures(2), network().config.preprocess)
    with torch.no_grad():
        truth = network().double()(images.double()).numpy()
    errors = []
    for height, width in ((56, 72), (HEIGHTS, WIDTHS)):
        path = tmp_path / "m.onnx"
        export(network(), path, height=height, width=width, precision=precision, outputs=OUTPUTS)
        logits = dict(zip(OUTPUTS, runtime(path, engine)({"images": images.numpy()}), strict=True))["logits"]
        errors.append(np.sqrt(np.square(logits - truth).mean()))
    assert errors[1] <= 2 * errors[0]


def test_an_official_checkpoint_between_sizes_gives_its_logits(shared, tmp_path, capsys):
    folder, path = shared / "golden" / "vit_mask16", tmp_path / "m.onnx"
    command = [str(folder / "checkpoint.pth"), "--out", str(path), "--height", "16", "64", "128"]
    assert export_command.main([*command, "--width", "16", "64", "128", "--outputs", *OUTPUTS]) == 0
    assert "fp32, normalized images 16..128x16..128, 7 classes" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with np.load(folder / "golden.npz") as values:
        for image, logits in (("im0", "logits0"), ("im1", "logits1")):
            (found,) = session.run(["logits"], {"images": values[image]})
            np.testing.assert_allclose(found, values[logits], rtol=0, atol=1e-4)
    assert export_command.main([*command, "--batch", "2", "1", "1"]) == 2
    assert "error: batch 2 1: wanted smallest <= usual <= largest" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.tensorrt
def test_tensorrt_keeps_attention_fused_between_sizes(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    torch.manual_seed(0)
    sides, outputs = (256, 512, 1024), ("labels", "masks", "confidence")
    path, plan = tmp_path / "m.onnx", tmp_path / "m.plan"
    model = Segmenter(variant("Seg-Ti-Mask/16")).eval()
    export(model, path, height=sides, width=sides, precision="fp16", input="pixels", outputs=outputs)
    layers = build(path, plan, outputs=outputs).details["layers"]
    assert layers["fused_attention"] == 12 + 2
    assert "products_fp32" not in layers  # position embeddings are resized in 16 bits too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": (64, 32, 128)}, "height 64 32 128: wanted smallest <= usual <= largest"),
        ({"width": (128, 64, 64)}, "width 128 64: wanted smallest <= usual <= largest"),
        ({"width": (8, 64, 64)}, "width 8 64: smaller than one 16 pixel patch"),
        ({"height": 0}, "height 0: smaller than one 16 pixel patch"),
        ({"height": (16, 64)}, "height 16 64: wanted one whole number, or three"),
        ({"height": 64.0}, "height 64.0: wanted one whole number, or three"),
        ({"batch": (0, 1, 4)}, "batch 0 1 4: wanted at least 1"),
        ({"height": 99_999}, "height 99999: wanted at most 65536"),
        ({"batch": (1, 1, 65_537)}, "batch 1 65537: wanted at most 65536"),
        (
            {"height": 65_536, "width": 65_536, "batch": 64},
            "64 images of 65536x65536: too large for",
        ),
        ({"outputs": ("labels", "masks", "scores")}, "output 'scores': export knows labels, masks, logits, confidence"),
        ({"outputs": ("labels", "confidence")}, "masks cannot be left out"),
        ({"outputs": ()}, "outputs none: labels cannot be left out"),
        ({"input": "video"}, "input 'video': export knows normalized and pixels"),
    ],
)
def test_what_cannot_be_exported_is_named(tmp_path, options, message):
    with pytest.raises(EngineError, match=message):
        export(small_network(), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_more_classes_than_labels_can_name_are_refused(tmp_path):
    model = small_network("linear", classes=tuple(f"class {index}" for index in range(32768)))
    with pytest.raises(EngineError, match="32768 classes: labels are int16, which ends at 32767"):
        export(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("error", [EncodeError("too big"), ValueError("exceeds 2GiB")])
def test_a_graph_larger_than_a_file_can_be_is_named(engine_folder, tmp_path, monkeypatch, error):
    """As protobuf says it, in its C and in its Python version; 2 GiB would take seconds to fill."""

    def refuse(graph, path):
        raise error

    monkeypatch.setattr(onnx, "save", refuse)
    with pytest.raises(EngineError, match=rf"model.onnx: an ONNX file holds at most 2 GiB, .*\({error}\); export with"):
        write_graph(onnx.ModelProto(), read_manifest(engine_folder / FP32), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_whose_manifest_would_be_refused_is_not_written(engine_folder, tmp_path):
    graph, out = onnx.load(engine_folder / FP32), tmp_path / FP32
    manifest = read_manifest(engine_folder / FP32)
    with pytest.raises(EngineError, match=r"batch .* wanted an integer from 1 to 65536"):
        write_graph(graph, replace(manifest, batch=(1, 1, 1 << 17)), out)
    assert not list(tmp_path.iterdir())
    assert write_graph(graph, replace(manifest, sha256=""), out) == read_manifest(out)
    # over one that is there: as it was
    before = out.read_bytes(), read_manifest(out)
    with pytest.raises(EngineError, match="cannot be written"):
        write_graph(onnx.load(engine_folder / FP16), replace(manifest, model=""), out)
    assert (out.read_bytes(), read_manifest(out)) == before
