"""The layer report: what is read of a builder's text, roles, precision, reasons, the page and the command."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segmenter.errors import EngineError
from segmenter.files import sha256
from segmenter_engines import build as build_command
from segmenter_engines import layers as layers_command
from segmenter_engines.asked import Asked, AskedLinear, asked
from segmenter_engines.build import build
from segmenter_engines.layer_report import (
    LayerReport,
    layers_in_json,
    layers_in_text,
    linears_of,
    read_report,
    report_path,
    type_name,
    with_ops,
)
from segmenter_engines.manifest import read_manifest


def line(name, kind, inputs=(), constants=(), outputs=(), onnx_nodes=()):
    """A layer as RTX 1.7.1 logs it; tensors are (name, type, shape)."""

    def block(tensors):
        return ", ".join(
            f"{{ Name: {name}, Dimensions: {str(list(shape)).replace(' ', '')}, Strides: [64,1], StrideOrder: [1,0],"
            f" Datatype: {kind}, Format: (Arbitrary) Format with stride order = [1,0] }}"
            for name, kind, shape in tensors
        )

    nodes = "".join(f"[ONNX Layer: {node}]" for node in onnx_nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {block(inputs)}], Constants: [ {block(constants)}],"
        f" Outputs: [ {block(outputs)}], TacticName: t, StreamId: 0, Metadata: {nodes}"
    )


X, W8, WH = ("x", "Int8", (-1, 64)), ("w", "Int8", (64, 192)), ("w", "Half", (64, 192))
LINES = (
    "noise before",
    line("__mye1_myl0_0", "shape_call"),
    line("cast_hvar", "cast", [("n", "Int64", (1,))], outputs=[("m", "Int64", (1,))]),
    line("__myl_CastReplConc_myl0_1", "kgen", [("images", "Float", (-1, 3, 8, 8))], outputs=[("x0", "Half", (-1, 4))]),
    line("conv_myl0_2", "correlation", [("x0", "Half", (-1, 4))], [("k", "Half", (8, 4, 2, 2))], [("x", "Half", (1,))]),
    line("a_myl0_3", "gemm", [X], [W8, ("alpha", "Float", (1,))], [("q", "Half", (-1, 64))], ["node_a"]),
    # the activation in 8 bits and the weight dequantised: a product in 16 bits
    line(
        "__myl_CastMulFc_myl0_4", "runtime_fusion", [X, WH], outputs=[("q2", "Half", (-1, 64))], onnx_nodes=["node_b"]
    ),
    line(
        "__myl_FcAddAdd_myl0_5", "runtime_fusion", [("r", "Half", (-1, 64)), X], [W8], [("p", "Half", (1,))], ["node_c"]
    ),
    line("__myl_AddReshTranMove_myl0_6", "kgen", [("q", "Half", (-1, 64))], outputs=[("qh", "Half", (-1, 8))]),
    line("_gemm_mha_v2_myl0_7", "kgen", [("qh", "Half", (-1, 8))] * 3, outputs=[("o", "Int8", (-1, 8))]),
    line("__myl_MeanSubMul_myl0_8", "kgen", [("o", "Int8", (-1, 8))], outputs=[("z", "Half", (-1, 8))]),
    line("__myl_Tran_myl0_9", "kgen", [("z", "Half", (-1, 8))], outputs=[("zt", "Half", (8, -1))]),
    line("f_myl0_10", "gemm", [("zt", "Float", (8, -1)), ("u", "Half", (8, 8))], outputs=[("v", "Float", (8, 8))]),
    line("__myl_CastReshCast_myl0_11", "kgen", [("v", "Int32", (8, 8))], outputs=[("labels", "UInt8", (8, 8))]),
    "I/O Tensors:",
    " Name: images, IOMode: Input",
)


def test_layers_are_read_and_named_by_what_they_do():
    layers = layers_in_text(LINES, ["images"], ["labels"])
    assert [(layer.role, layer.precision) for layer in layers] == [
        ("host", ""), ("host", ""), ("cast", ""), ("convolution", "fp16"), ("product", "int8"), ("product", "fp16"),
        ("product", "int8"), ("reformat", ""), ("attention", "fp16"), ("pointwise", ""), ("reformat", ""),
        ("product", "fp32"), ("cast", ""),
    ]  # fmt: skip
    reasons = [layer.reason for layer in layers if layer.role in ("reformat", "cast")]
    assert reasons[0].startswith("the images, into")
    assert reasons[1].startswith("q, k or v: bias and scale")
    assert reasons[2] == ""  # a transpose between a norm and a product: nobody knows why
    assert reasons[3].startswith("an output, from")
    assert layers[4].inputs[0].shape == (-1, 64)
    assert layers[4].constants[0].type == "int8"


def report_of(layers, linears, precision="int8", attentions=2):
    wanted = Asked(attentions, linears, {})
    return LayerReport("m.plan", "0" * 64, "tensorrt-rtx", "1", precision, "builder's log", attentions,
                       linears_of(wanted, layers), layers)  # fmt: skip


def test_what_is_lost_is_told():
    linears = tuple(AskedLinear(f"node_{name}", name, "int8") for name in "abcd")
    report = report_of(layers_in_text(LINES, ["images"], ["labels"]), linears)
    assert [(one.name, one.ran) for one in report.lost] == [("b", "fp16"), ("d", "")]
    assert report.faults() == (
        "1 of 2 attentions are one fused kernel",
        "2 of 4 linear layers run otherwise than asked: 1 int8 in fp16, 1 int8 in no product of its own",
        "1 products run in fp32",
        "1 layers only move or convert data, for no known reason",
    )
    assert report.counts()["products_int8"] == 2
    assert report_of((), linears).faults() == ("the builder's log tells of no layers",)


@pytest.mark.parametrize("fields", [{"Format/Datatype": "Row major linear FP16 format"}, {"DataType": "Half"}])
def test_inspectors_of_tensorrt_10_and_11_are_read(fields):
    tensors = [{"Name": "x", "Dimensions": [1, 64], **fields}]
    entries = [
        {"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Inputs": tensors, "Outputs": tensors},
        {"Name": "fc", "LayerType": "gemm", "Inputs": tensors, "Outputs": tensors, "Metadata": "[ONNX Layer: fc]\x1e"},
        {"Name": "att", "LayerType": "PluginV3", "Inputs": tensors, "Outputs": tensors, "Metadata": ""},
    ]
    layers = layers_in_json(json.dumps({"Layers": entries}), ["x"], [])
    assert [layer.role for layer in layers] == ["reformat", "product", "plugin"]
    assert (layers[1].precision, layers[1].onnx) == ("fp16", ("fc",))
    assert layers_in_json(json.dumps({"Layers": ["fc", "att"]}), [], []) == ()
    # a plugin's layer has the name of its node
    ops = {"att": "SegmenterAttention", "fc": "no plugin's"}
    assert [layer.op for layer in with_ops(Asked(1, (), ops), layers)] == ["", "", "SegmenterAttention"]
    assert type_name("Two wide channel vectorized row major Int8 format") == "int8"


def test_a_graph_says_what_is_asked(engine_folder):
    half = asked(onnx.load(engine_folder / "model.fp16.onnx").graph)
    quantised = asked(onnx.load(engine_folder / "model.int8-trt.onnx").graph)
    assert half.attentions == quantised.attentions == 3
    assert {linear.precision for linear in half.linears} == {"fp16"}
    assert len(half.linears) == len(quantised.linears) == 15
    tail = {linear.name for linear in quantised.linears if linear.precision == "fp16"}
    assert tail == {"decoder.proj_patch", "decoder.proj_classes"}


def test_plugins_without_a_name_or_of_the_same_are_all_counted():
    names = ("", "", "same", "same")
    nodes = [
        onnx.helper.make_node("SegmenterAttention", ["x"], [f"y{index}"], name=name, domain="segmenter")
        for index, name in enumerate(names)
    ]
    found = asked(onnx.helper.make_graph(nodes, "plugins", [], []))
    assert found.attentions == 4
    assert found.plugins == {"same": "SegmenterAttention"}


def quantise_by_hand(source, out):
    """Symmetric int8 Q/DQ at every linear layer, on whatever base the graph has."""
    model = onnx.load(source)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            name, weight = node.name, numpy_helper.to_array(constants[node.input[1]])
            real = constants[node.input[1]].data_type
            for key, values in (("s", np.array(0.05, weight.dtype)), ("z", np.array(0, np.int8))):
                graph.initializer.append(numpy_helper.from_array(values, f"{name}/{key}"))
            integers = np.clip(np.round(weight.astype(np.float32) / 0.05), -127, 127).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(integers, f"{name}/w"))
            scale = [f"{name}/s", f"{name}/z"]
            nodes += [
                helper.make_node("QuantizeLinear", [node.input[0], *scale], [f"{name}/q"]),
                helper.make_node("DequantizeLinear", [f"{name}/q", *scale], [f"{name}/dq"]),
                helper.make_node("DequantizeLinear", [f"{name}/w", *scale], [f"{name}/wdq"]),
            ]
            assert real in (TensorProto.FLOAT, TensorProto.FLOAT16)
            node.input[0], node.input[1] = f"{name}/dq", f"{name}/wdq"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, out)
    base = read_manifest(source)
    from dataclasses import replace

    replace(base, artifact=out.name, precision="int8", sha256=sha256(out), details={"target": "tensorrt"}).write(out)


@pytest.mark.tensorrt
def test_int8_on_an_fp32_base_fuses_nothing_and_the_report_says_so(engine_folder, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    for base in ("fp16", "fp32"):
        quantise_by_hand(engine_folder / f"model.{base}.onnx", tmp_path / f"{base}.onnx")
    fused = build(tmp_path / "fp16.onnx", tmp_path / "fp16.plan").details
    assert fused["layers"]["fused_attention"] == 3
    assert "products_fp32" not in fused["layers"]
    plan = tmp_path / "fp32.plan"
    assert build_command.main([str(tmp_path / "fp32.onnx"), "--out", str(plan)]) == 0
    assert "slower than the graph asks: 0 of 3 attentions are one fused kernel" in capsys.readouterr().out
    report = read_report(plan, read_manifest(plan).sha256)
    assert report.fused_attentions == 0
    assert report.counts()["products_fp32"] >= 6  # both products of every attention
    assert any("products run in fp32" in fault for fault in report.faults())
    assert layers_command.main([str(plan)]) == 0
    assert "0 of 3 attentions are one kernel" in capsys.readouterr().out
    assert layers_command.main([str(plan), "--strict"]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.tensorrt
def test_the_command_and_its_page(engine_folder, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    plan, page = tmp_path / "m.plan", tmp_path / "m.html"
    build(engine_folder / "model.fp16.onnx", plan)
    assert layers_command.main([str(plan), "--all", "--html", str(page), "--strict"]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 attentions are one kernel" in said
    assert "all runs as the graph asks" in said
    assert sum(one.startswith("attention ") for one in said.splitlines()) == 3
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "http" not in text  # nothing from elsewhere
    assert "<script" not in text
    assert "encoder.blocks.0.attn.qkv" in text
    path = report_path(plan)
    for wrong, message in (
        ("{}", "not a layer report"), ("[1]", "not a layer report"), ('{"format": 9}', "format 9, wanted 1"),
        (path.read_text().replace(read_manifest(plan).sha256, "0" * 64), "is of another plan than m.plan"),
        (None, "no layer report m.plan.layers.json beside it"),
    ):  # fmt: skip
        path.unlink() if wrong is None else path.write_text(wrong)
        assert layers_command.main([str(plan)]) == 2
        assert message in capsys.readouterr().err
    assert layers_command.main([str(engine_folder / "model.fp16.onnx")]) == 2
    assert "is a graph; pass a plan" in capsys.readouterr().err
    with pytest.raises(EngineError, match="build the plan again"):
        read_report(plan, "")
