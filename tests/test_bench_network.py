"""A whole network with PyTorch, Triton and NumPy alone: judged, timed in turns, and told on the page."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segmenter.errors import ConfigError
from segmenter_bench import network_step, network_ways
from segmenter_bench.acceptance_steps import RIVALS
from segmenter_bench.network_step import (
    FP32_AGREEMENT,
    LABELS_OF_MASKS,
    LARGEST_8_BIT_ERROR,
    LARGEST_FP16_ERROR,
    absent,
    measured,
    pictures,
)
from segmenter_bench.network_ways import Way
from segmenter_bench.origins import read_runs
from segmenter_bench.page import page
from segmenter_bench.random_weights import random_model
from segmenter_bench.runs import write_run
from segmenter_bench.sections import Line, sections
from segmenter_bench.timing import Burst
from segmenter_engines.limits import LIMITS
from segmenter_kernels.checks import INTERPRETED
from tests.kernels.interpreter import install
from tests.networks import small_config, small_network

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def ways(config: Any, device: torch.device = CPU) -> list[Way]:
    with network_ways.ways(config, device) as found:
        return found


def given_instead(monkeypatch: pytest.MonkeyPatch, given: list[Way]) -> None:
    monkeypatch.setattr(network_step, "ways", lambda *_: nullcontext(given))


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_step, "BURST_SECONDS", 0.01)
        return measured(small_config(), (1, 2), 5, CPU, "a command")


def test_every_way_is_judged_and_timed(run: dict[str, Any], tmp_path: Path) -> None:
    names = ["official", "official-channels-last", "eager"]
    assert [(row["engine"], row["batch"]) for row in run["rows"]] == [
        (name, batch) for batch in (1, 2) for name in names
    ]
    for row in run["rows"]:
        assert (row["status"], row["reason"]) == ("ok", None)
        assert row["agreement"] >= row["agreement_limit"] == FP32_AGREEMENT
        assert len(row["rounds_ms"]) == 5
        assert row["ratio"]["median"] > 0
        assert row["others_busy"] is None or row["others_busy"] >= 0
    assert run["notes"][0] == network_step.NOTE
    (section,) = sections(read_runs([write_run(run, tmp_path)], tmp_path))
    text = page("title", [section], "command")
    assert "attention by scaled_dot_product_attention" in text  # a rung of the ladder
    assert "<code>openvino-int8</code>" in text  # and some that are missing
    assert "needs more than PyTorch, Triton and NumPy" in text
    assert "<code>triton-fp8</code>: no CUDA device here" in text
    assert "All are in one process" in text
    assert "Each runs in a process of its own" not in text


def test_what_is_no_way_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_step, "triton_lacks", lambda: "safetensors")
    reasons = {one["engine"]: one["reason"] for one in absent({"gpu-sdpa"}, torch.device("cuda"))}
    assert reasons["official"].startswith("a rung on a CPU: where there is a GPU")
    assert reasons["triton-int8"] == "the triton engine needs safetensors, which is not installed"
    assert reasons["gpu-explicit"] == "not among the ways of this run"
    assert reasons["openvino-int8"].startswith("a rung on a CPU")
    assert "gpu-sdpa" not in reasons


def test_fp16s_error_has_a_limit_whatever_pytorchs_is(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    real = ways(config)[2]
    given = [Way("off", "fp16", real.call, lambda images: 1.06 * real.masks(images), "")]
    given_instead(monkeypatch, given)
    monkeypatch.setattr(network_step, "_fp16_error", lambda *_: 1.0)
    (row,) = measured(config, (1,), 1, CPU, "")["rows"]
    assert (row["status"], row["error_limit"]) == ("failed", LARGEST_FP16_ERROR)


def test_its_limit_is_that_of_the_engines() -> None:
    assert 1.0 - LIMITS["fp32"].disagreement == FP32_AGREEMENT


def test_wrong_labels_and_errors_past_fp16s_own_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    real = ways(config)[2]

    def noisy(scale: float) -> Any:
        return lambda images: real.masks(images) + scale * torch.randn(real.masks(images).shape)

    def raises(images: np.ndarray) -> np.ndarray:
        raise RuntimeError("no kernel\nhere")

    given = [
        Way("mirrored", "fp32", lambda images: real.call(images)[:, ::-1].copy(), real.masks, ""),
        Way("worse", "fp16", real.call, noisy(1e-2), ""),  # the first in fp16 sets no limit of its own
        Way("as-good", "fp16", real.call, noisy(1e-4), ""),
        Way("other-labels", "fp16", lambda images: real.call(images)[:, ::-1].copy(), real.masks, ""),
        Way("broken", "fp16", raises, real.masks, ""),
        Way("no-number", "fp16", real.call, lambda images: real.masks(images) * float("nan"), ""),
    ]
    given_instead(monkeypatch, given)
    monkeypatch.setattr(network_step, "BURST_SECONDS", 0.01)
    rows = {row["engine"]: row for row in measured(config, (1,), 3, CPU, "")["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(("mirrored", "worse", "broken", "other-labels", "no-number"), "failed"),
        "as-good": "ok",
    }
    assert re.fullmatch(r"error \S+ of the class masks; at most 0\.00\d+", rows["worse"]["reason"])
    assert "of labels are those PyTorch makes of its masks; wanted 99%" in rows["other-labels"]["reason"]
    assert rows["as-good"]["of_masks"] >= rows["as-good"]["of_masks_limit"] == LABELS_OF_MASKS
    assert Line("as-good", 1, rows["as-good"], None).verdict == "passed"
    assert "of pixels agree; wanted 99.9%" in rows["mirrored"]["reason"]
    assert rows["broken"]["reason"] == "RuntimeError: no kernel here"
    assert rows["worse"]["timing"] is None
    assert rows["as-good"]["timing"] is not None


def test_a_stream_is_timed_a_batch_and_judged_by_the_labels_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    real = ways(config)[2]
    given = [
        replace(real, name="calls"),
        replace(real, name="stream", stream=lambda batches: (real.call(batch) for batch in batches)),
        # as from a buffer that the next batch writes over
        replace(real, name="mixed", stream=lambda batches: (real.call(batch) for batch in [*batches[1:], batches[0]])),
        replace(real, name="short", stream=lambda batches: (real.call(batch) for batch in batches[1:])),
    ]
    given_instead(monkeypatch, given)
    monkeypatch.setattr(network_step, "burst", lambda *_: Burst([80.0, 160.0], 16.0))
    run = measured(config, (1,), 1, CPU, "")
    rows = {row["engine"]: row for row in run["rows"]}
    assert {name: row["reason"] for name, row in rows.items() if row["status"] != "ok"} == dict.fromkeys(
        ("mixed", "short"), "ValueError: labels of the stream are not those of calls"
    )
    assert rows["calls"]["rounds_ms"] == [[80.0, 160.0]]
    assert rows["stream"]["rounds_ms"] == [[10.0, 20.0]]  # a batch's share of eight
    assert rows["stream"]["timing"]["cpu_ms"] == 2.0
    assert rows["stream"]["timing"]["images_per_s"] == 1000.0 / 15.0
    assert run["notes"][1] == network_step.STREAM_NOTE


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="neither a GPU nor Triton's interpreter")
@pytest.mark.parametrize("fused_labels", [False, True])
def test_our_kernels_label_as_pytorch_does(fused_labels: bool) -> None:
    import segmenter_kernels

    device = torch.device("cpu" if INTERPRETED else "cuda")
    model = small_network()
    images = pictures(1, (64, 64))
    expected = ways(model.config)[2]
    ours = type(model)(model.config, segmenter_kernels).eval()
    ours.load_state_dict(random_model(model.config).state_dict())
    way = network_ways._kernels("k", ours.to(device, torch.float16), segmenter_kernels, fused_labels, False, "")
    with torch.inference_mode():
        masks, labels = expected.masks(images), expected.call(images)
        error = (way.masks(images).float().cpu() - masks).norm() / masks.norm()
        assert float(error) < 0.01
        found = way.call(images)
    assert found.dtype == np.uint8
    assert (found == labels).mean() > 0.95
    assert len(np.unique(labels)) > 1


class Launched:
    """What stands in for a CUDA graph here."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(images)


@pytest.mark.skipif(not INTERPRETED, reason="the stand-in for a GPU would be beside one")
def test_a_gpus_ways_are_right_as_far_as_the_interpreter_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every way of a GPU, launched on the CPU: the compiled one by a backend that compiles nothing."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend="eager", dynamic=False))
    monkeypatch.setattr(network_ways, "Graphed", Launched)
    monkeypatch.setattr(network_step, "BURST_SECONDS", 0.0)
    monkeypatch.setattr(network_step, "MIN_CALLS", 1)
    monkeypatch.setattr(network_step, "STREAMED", 2)
    install()

    @contextmanager
    def on_gpu(config: Any, device: torch.device, chosen: Any) -> Iterator[list[Way]]:
        with network_ways.ExitStack() as stack:
            yield network_ways._on_gpu(config, device, (*RIVALS, "triton-int8-stream"), stack)

    monkeypatch.setattr(network_step, "ways", on_gpu)
    config, kept = small_config(depth=1, image_size=(32, 48)), []
    run = measured(config, (1,), 1, CPU, "", lambda run: kept.append(len(run["rows"])))
    rows = {row["engine"]: row for row in run["rows"]}
    assert list(rows) == [
        *("gpu-explicit", "gpu-sdpa", "gpu-kernels", "gpu-kernels-labels", "gpu-kernels-graph"),
        *("triton-fp16", "triton-int8", "triton-fp8", "triton-int8-stream", "compiled-fp16"),
    ]
    assert {name: row["reason"] for name, row in rows.items() if row["status"] != "ok"} == {}
    assert kept == [*range(1, 11), 10]
    assert "8 batches in a row" in rows["triton-int8-stream"]["describe"]["does"]
    assert run["notes"][1].startswith("Rows named -stream: a reading is 8 batches in a row")
    assert rows["triton-fp16"]["error"] < 0.01
    assert rows["triton-fp16"]["error"] < rows["triton-int8"]["error"] < rows["triton-fp8"]["error"]
    assert rows["triton-fp8"]["error_limit"] == LARGEST_8_BIT_ERROR
    assert "triton-fp8, batch 1: check" in capsys.readouterr().err
    assert set(RIVALS) <= set(rows)


def test_ways_that_are_none_are_refused() -> None:
    # a rung of the GPU's ladder is named as missing in the run; a name that is none would be dropped in silence
    for chosen, why in (
        (("triton-fp16",), "--way triton-fp16: none of them runs here"),
        (("compiled-fp16",), "--way compiled-fp16: no way of this machine"),
        (("eager", "triton-fp16", "typo"), "--way typo: no way of this machine"),
    ):
        with pytest.raises(ConfigError, match=why):
            measured(small_config(), (1,), 1, CPU, "", chosen=chosen)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(("Seg-X/16",), "variant 'Seg-X/16' is unknown"), (("Seg-Ti/16", "--way", "typo"), "--way typo: no way of this")],
)
def test_a_wrong_name_is_one_line(
    arguments: tuple[str, ...], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        network_step.main(["--out", str(tmp_path), "--variant", *arguments])
    assert stopped.value.code == 2
    assert f"error: {why}" in capsys.readouterr().err.splitlines()[-1]


def test_a_bare_checkout_measures_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    """A Python that has PyTorch, NumPy and what they need, and no other package of ours or of anyone."""
    program = (
        "import importlib.util as u, sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'PIL', 'rich', 'tyro', 'safetensors', 'yaml', 'onnx', 'openvino',"
        " 'onnxruntime', 'pynvml', 'tqdm'} or name == 'segmenter_trt._native':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from segmenter_bench import network_step\n"
        "network_step.BURST_SECONDS, whole = 0.01, network_step.variant\n"
        "network_step.variant = lambda name: whole(name, 5, image_size=(64, 64))\n"
        f"sys.exit(network_step.main(['--variant', 'Seg-Ti/16', '--rounds', '1', '--out', {str(tmp_path)!r}]))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    (file,) = tmp_path.glob("throughput-*.json")
    made = json.loads(file.read_text())
    assert [row["status"] for row in made["rows"]] == ["ok"] * 3
    assert made["command"].endswith(f"--variant Seg-Ti/16 --rounds 1 --out {tmp_path}")


def test_what_runs_on_a_bare_gpu_machine_needs_no_other_package() -> None:
    """PyTorch, Triton, NumPy, safetensors and rich are enough."""
    program = (
        "import sys\n"
        "hidden = ('tyro', 'tqdm', 'onnx', 'onnxscript', 'onnxruntime', 'openvino', 'yaml', 'pynvml', 'cryptography')\n"
        "sys.modules.update(dict.fromkeys((*hidden, 'segmenter_trt._native')))\n"
        "import segmenter_bench.acceptance_page, segmenter_bench.kernel_step, segmenter_bench.machine_step\n"
        "import segmenter_kernels.tune, segmenter_engines.sessions.triton\n"
        "from segmenter_bench import kernel_check, network_step, network_ways\n"
        "from segmenter_bench.network_ways import ExitStack\n"
        "from tests.networks import small_config\n"
        "from segmenter_bench.network_step import pictures\n"
        "with ExitStack() as stack:\n"
        "    way = network_ways._engines(small_config(), stack)[0]\n"
        "    print(way.name, way.call(pictures(1, (64, 64))).shape)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout == "triton-fp16 (1, 64, 64)\n"
