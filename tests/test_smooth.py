"""Smoothing of networks whose norms are alike: exporters store equal tensors once, and each must still get its own."""

import numpy as np
import onnx
import torch

from segmenter.checkpoint import save_model
from segmenter.preprocess import normalize
from segmenter_engines.calibrate import channel_peaks
from segmenter_engines.export import export
from segmenter_engines.qdq import linears
from segmenter_engines.smooth import norm_fed, smooth
from tests.networks import small_network
from tests.small_engines import masks


def test_norms_that_share_their_weights_are_smoothed_each_on_its_own(tmp_path):
    model = small_network()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
    save_model(model, tmp_path / "checkpoint")
    path = tmp_path / "model.onnx"
    manifest = export(tmp_path / "checkpoint", path)
    graph = onnx.load(path)
    fed = norm_fed(graph.graph, [layer.weight for layer in linears(graph.graph)])
    assert len({norm.input[1] for norm, _ in fed.values()}) < len(fed)  # or this test shows nothing
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    batch = normalize(images, manifest.preprocess).numpy()
    smooth(graph.graph, fed, channel_peaks(graph, list(fed), [batch]), 0.5)
    onnx.save(graph, tmp_path / "smoothed.onnx")
    assert len({norm.input[1] for norm, _ in fed.values()}) == len(fed)
    before, after = (masks(where, batch) for where in (path, tmp_path / "smoothed.onnx"))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)
