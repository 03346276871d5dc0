"""The split of queries, keys and values by heads: the same numbers, and whole weights in a plan."""

import numpy as np
import onnx
import pytest

from segmenter.preprocess import normalize
from segmenter_engines.heads import split_by_heads
from segmenter_engines.layer_report import read_report
from segmenter_engines.manifest import read_manifest
from segmenter_engines.quantize import quantize
from tests.small_engines import masks, pictures


def test_values_do_not_change_and_a_second_pass_finds_nothing(engine_folder):
    path = engine_folder / "model.fp32.onnx"
    model = onnx.load(path)
    batch = normalize(pictures(2), read_manifest(path).preprocess).numpy()
    before = masks(model, batch)
    # the two encoder blocks; the decoder of this network has one head, which is exported otherwise
    assert split_by_heads(model.graph) == 2
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(masks(model, batch), before)
    assert split_by_heads(model.graph) == 0


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_products_of_queries_keys_and_values_read_8_bit_weights(engine_folder, tmp_path, precision):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from segmenter_engines.build import build

    quantize(
        engine_folder / "model.fp16.onnx",
        tmp_path / "m.onnx",
        pictures(1),
        precision=precision,
        exclude=["decoder"],
    )
    plan = tmp_path / "m.plan"
    report = read_report(plan, build(tmp_path / "m.onnx", plan).sha256)
    sides = [tensor for layer in report.of("product") for tensor in (*layer.inputs, *layer.constants)]
    whole = [tensor for tensor in sides if (tensor.shape, tensor.type) == ((64, 192), precision)]
    assert len(whole) == 2  # of the encoder's two blocks
