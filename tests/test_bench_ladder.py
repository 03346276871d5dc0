"""The ablation ladder: rungs give PyTorch's labels, gains are those of the rounds, and what is missing is named."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segmenter.checkpoint import save_model
from segmenter.errors import Unavailable
from segmenter.model import Segmenter
from segmenter_bench import miou
from segmenter_bench.engines import RUNGS, choose, open_entry
from segmenter_bench.eomt import QUERIES, EncoderOnly, EomtStyle, joined_blocks
from segmenter_bench.ladder import LADDERS, Rung, climb, climbs, unmeasured
from segmenter_bench.page import page
from segmenter_bench.page_markdown import markdown
from segmenter_bench.sections import sections
from segmenter_engines import open_session
from segmenter_kernels.checks import INTERPRETED
from tests.bench_samples import throughput_run
from tests.networks import small_config, small_network

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), dtype=np.uint8).repeat(10, axis=1).repeat(10, axis=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rungs")
    save_model(small_network(image_size=(48, 64)), folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    with open_session(folder / "checkpoint", "eager", threads=1) as eager:
        return eager(IMAGES)


def rung(name: str, folder: Path) -> Any:
    (entry,) = choose([name])
    return open_entry(entry, folder, threads=1)


def test_labels_in_one_pass_are_eagers(folder: Path, expected: np.ndarray) -> None:
    engine = rung("eager-fused-labels", folder)
    assert engine.describe()["labels_by"] == "segmenter_trt.upsample_argmax"
    assert (engine(IMAGES) == expected).mean() >= 0.999
    assert len(np.unique(expected)) > 2


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="neither a GPU nor Triton's interpreter")
@pytest.mark.parametrize("name", ["gpu-kernels", "gpu-kernels-labels"])
def test_kernels_launched_one_by_one_label_as_eager_does(name: str, folder: Path, expected: np.ndarray) -> None:
    labels = rung(name, folder)(IMAGES)
    assert labels.dtype == np.uint8
    assert (labels == expected).mean() >= 0.98  # fp16


@pytest.mark.parametrize("name", ["gpu-explicit", "gpu-sdpa"])
def test_pytorchs_rungs_on_a_gpu(name: str, folder: Path, expected: np.ndarray) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match="no CUDA device here; this rung of the ladder runs on a GPU alone"):
            rung(name, folder)
        return
    assert (rung(name, folder)(IMAGES) == expected).mean() >= 0.98


def run_of(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """A speed run whose engines made so many images/s in each round."""
    run = throughput_run(trained=False, batches=(1,))
    row = run["rows"][0]
    run["rows"] = [
        row
        | {"engine": name, "rounds_ms": [[1000.0 / one] * 3 for one in rounds]}
        | {"timing": row["timing"] | {"images_per_s": median(rounds)}}
        for name, rounds in speeds.items()
    ]
    return run


CPU = {
    "official": [1.0, 0.5, 1.0, 1.0, 1.0],
    "official-channels-last": [2.0, 1.0, 2.0, 2.0, 2.0],  # the machine was slow in a round, the same for all
    "eager": [3.3, 1.5, 3.0, 3.0, 2.7],
    "openvino-fp32": [6.0, 3.0, 6.0, 6.0, 6.0],
    "openvino-int8": [9.0, 4.5, 9.0, 9.0, 9.0],
}


def test_gains_are_the_median_of_the_rounds_and_over_the_last_rung_there_is() -> None:
    (section,) = sections([run_of(CPU)])
    steps = {one.rung.engine: one for one in climb(LADDERS["on a CPU, to OpenVINO"], section)}
    assert (steps["official"].gain, steps["official"].total) == (None, 1.0)
    assert (steps["official-channels-last"].gain, steps["official-channels-last"].spread) == (2.0, (2.0, 2.0))
    assert (steps["eager"].gain, steps["eager"].spread) == (1.5, (1.5, 1.5))
    assert steps["eager-fused-labels"].row is None
    assert steps["eager-fused-labels"].reason == "not among the engines of this run"
    assert (steps["openvino-fp32"].over, steps["openvino-fp32"].gain) == ("eager", 2.0)
    assert (steps["openvino-int8"].over, steps["openvino-int8"].total) == ("openvino-fp32", 9.0)


def test_of_few_rounds_the_gain_is_that_of_the_table() -> None:
    """One round in which another was slow would put rungs in another order than their images/s."""
    (section,) = sections([run_of({"a": [2.0, 2.0, 2.0], "b": [4.0, 1.0, 1.0]})])
    _, step = climb((Rung("a", ""), Rung("b", "")), section)
    assert (step.gain, step.total, step.spread) == (0.5, 0.5, None)
    run = run_of({"a": [1.0, 4.0, 4.0], "b": [2.0, 3.0, 8.0]})  # by rounds 2.0, 0.75 and 2.0
    (section,) = sections([run])
    assert climb((Rung("a", ""), Rung("b", "")), section)[1].gain == 0.75


def test_a_rung_may_build_on_another_than_the_one_before() -> None:
    (section,) = sections([run_of({"a": [1.0], "b": [4.0], "c": [8.0]})])
    steps = climb((Rung("a", ""), Rung("b", ""), Rung("c", "", over="a")), section)
    assert [(step.over, step.gain, step.spread) for step in steps] == [
        (None, None, None),
        ("a", 4.0, None),
        ("a", 8.0, None),
    ]


def test_rungs_that_failed_or_could_not_run_are_named_with_the_reason() -> None:
    run = run_of(CPU)
    run["rows"][2] |= {"status": "failed", "reason": "wrong labels"}
    run["unavailable"] = [{"engine": name, "reason": "no CUDA device here"} for name in ("gpu-explicit", "gpu-sdpa")]
    (section,) = sections([run])
    reasons = unmeasured(section)
    assert reasons["wrong labels"] == ["eager"]
    assert reasons["no CUDA device here"] == ["gpu-explicit", "gpu-sdpa"]
    assert set(climbs(section)) == {"on a CPU, to OpenVINO", "on a CPU, to ONNX Runtime"}  # and none of a GPU
    text = page("title", [section], "command")
    assert "<code>gpu-explicit</code>, <code>gpu-sdpa</code>: no CUDA device here" in text
    assert "x 3.00" in text  # openvino-fp32 over official-channels-last
    assert (
        "| openvino-fp32 | the network as one fused graph in OpenVINO | 6.00 | 3.00 over official-channels-last |"
        in markdown([section])
    )
    assert '<span class="spread">over official-channels-last</span>' in text
    assert '<span class="spread">over eager</span>' not in text


def test_a_second_run_of_a_network_hides_no_rung_of_the_first() -> None:
    """The ladder is of one run: that with most of its rungs, the newest of several."""
    whole, again = run_of(CPU), run_of({name: [2 * one for one in rounds] for name, rounds in CPU.items()})
    fewer = run_of({"official": [1.0], "openvino-fp32": [70.0]})
    for day, run in enumerate((whole, again, fewer), 1):
        run["created"] = f"2026-01-0{day}T00:00:00Z"
    (section,) = sections([fewer, again, whole])
    steps = {one.rung.engine: one for one in climb(LADDERS["on a CPU, to OpenVINO"], section)}
    assert steps["openvino-fp32"].gain == 2.0
    assert steps["eager"].row is again["rows"][2]
    (section,) = sections([fewer, whole])
    assert climbs(section)["on a CPU, to OpenVINO"][0].row is whole["rows"][0]


def test_every_rung_is_an_engine_that_all_asks_for() -> None:
    names = {row.name for row in choose(["all"])}
    assert {one.engine for rungs in LADDERS.values() for one in rungs} <= names
    assert set(RUNGS) < names


def test_queries_join_in_the_last_blocks_alone() -> None:
    config = small_config(depth=5, width=64)
    torch.manual_seed(0)
    model = EncoderOnly(config).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        queries, patches = model.tokens(image)
        x = model.encoder.embed(image)
        for block in model.encoder.blocks[:2]:
            x = block(x)
        x = torch.cat((model.queries.expand(2, -1, -1), x), dim=1)
        for block in model.encoder.blocks[2:]:
            x = block(x)
        assert torch.equal(model.encoder.norm(x)[:, :QUERIES], queries)
        assert torch.equal(model.encoder.norm(x)[:, QUERIES + 1 :], patches)
    assert [joined_blocks(depth) for depth in (24, 12, 2)] == [4, 3, 2]
    # 16 pixel patches: features every 4 pixels
    assert model.masks(image).shape == (2, config.num_classes, 16, 16)


def test_the_other_network_is_of_equal_width_and_has_no_decoder() -> None:
    config = small_config()
    ours, other = Segmenter(config), EncoderOnly(config)
    assert {name for name, _ in other.encoder.named_parameters()} == {
        name for name, _ in ours.encoder.named_parameters()
    }
    assert not any("decoder" in name for name, _ in other.named_parameters())
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        other.eval().masks(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() > 0


def test_its_labels_are_labels_and_are_not_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = EomtStyle(folder / "checkpoint", threads=1)
    labels = engine(IMAGES)
    assert (labels.shape, labels.dtype) == ((1, 40, 60), np.uint8)
    assert np.array_equal(labels, EomtStyle(folder / "checkpoint", threads=1)(IMAGES))  # seeded
    assert "its labels are not compared" in engine.describe()["does"]
    (entry,) = choose(["eomt-style"])
    assert not entry.compared
    assert miou.main(["--folder", str(folder), "--engine", "eomt-style"]) == 2
    assert "it has no mIoU; leave it out" in capsys.readouterr().err


def test_another_network_is_never_the_best_and_says_what_it_is() -> None:
    run = run_of(CPU)
    for row in run["rows"]:
        row["timing"] = row["timing"] | {"images_per_s": CPU[row["engine"]][0]}
    fastest = run["rows"][0] | {"engine": "eomt-style", "compared": False, "agreement": None, "agreement_limit": None}
    run["rows"].append(fastest | {"timing": run["rows"][0]["timing"] | {"images_per_s": 99.0}})
    (section,) = sections([run])
    assert section.best is not None
    assert section.best.engine == "openvino-int8"
    assert section.lines(1)[-1].verdict == "other network"
