"""Tuning without a GPU: workloads, judging and choosing; what only a GPU can do is named and nothing is written."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import segmenter_kernels
from segmenter_kernels import tiles, timing, tune, workloads
from segmenter_kernels.judging import Judge, judge
from segmenter_kernels.workload import Workload
from segmenter_kernels.workloads import OPS
from tests.kernels.conftest import DEVICE

HALF = torch.float16
SMALL = {
    "attention": workloads.attention(2, 33, 2, 32, HALF),
    "patch_embed": workloads.patch_embed(2, 32, 64, HALF, pixels=False),
    "patch_embed pixels": workloads.patch_embed(2, 32, 64, HALF),
    "add_layernorm": workloads.norm("add_layernorm", 2, 5, 64, HALF),
    "layernorm": workloads.norm("layernorm", 2, 5, 64, HALF),
    "layernorm_quantize": workloads.norm("layernorm_quantize", 2, 5, 64, HALF),
    "linear_gelu": workloads.linear("linear_gelu", 2, 5, 64, HALF),
    "linear_residual": workloads.linear("linear_residual", 2, 5, 64, HALF),
    "mask_scores": workloads.mask_scores(2, 5, 64, HALF),
    "upsample_argmax": workloads.upsample_argmax(2, 32, HALF),
    "merge_windows": workloads.merge_windows((32, 40), 32, 16, HALF),
    "quantize": workloads.quantize(2, 5, 64, HALF),
    "rotate": workloads.rotate(2, 5, 2, 32, HALF),
    "resize": workloads.resize(2, 16, (40, 24)),
    "normalize": workloads.normalize(2, 24),
    "linear_int8": workloads.eight_bits("linear_int8", 2, 5, 64, HALF),
    "linear_fp8": workloads.eight_bits("linear_fp8", 2, 5, 64, HALF),
}


def drawn(workload: Workload) -> tuple[object, ...]:
    return workload.arguments(torch.device(DEVICE))


@pytest.mark.parametrize("name", SMALL)
def test_kernels_answer_their_workloads_right(name: str) -> None:
    workload, arguments = SMALL[name], drawn(SMALL[name])
    with torch.inference_mode():
        verdict = judge(workload, workload.launch(*arguments), arguments)
    assert verdict.right
    assert verdict.budget > 0


@pytest.mark.parametrize("name", ["attention", "linear_gelu", "upsample_argmax"])
def test_twice_the_plain_ops_error_is_allowed(name: str) -> None:
    workload, arguments = SMALL[name], drawn(SMALL[name])
    with torch.inference_mode():
        verdict = judge(workload, workload.plain(*arguments), arguments)
        values = workload.plain(*(x.double() if isinstance(x, torch.Tensor) else x for x in arguments))
    if name == "upsample_argmax":
        values = arguments[0].double()  # whose peaks bilinear weights keep below
        assert verdict.error == 0
        assert 0 < verdict.budget <= float(values.abs().max()) * 2**-10
    else:
        assert verdict.budget == max(2 * verdict.error, float(values[:1].abs().max()) * 2**-10)


@pytest.mark.parametrize("name", SMALL)
def test_wrong_answers_are_seen(name: str) -> None:
    workload, arguments = SMALL[name], drawn(SMALL[name])
    with torch.inference_mode():
        answer = workload.plain(*arguments)
        first = answer if isinstance(answer, torch.Tensor) else answer[0]
        if first.dtype.is_floating_point:
            first[0, -1, 0] *= 1.1
            assert not judge(workload, answer, arguments).right
            first[0, -1, 0] = float("nan")
        else:
            first[..., -1, 0] += 1
        assert not judge(workload, answer, arguments).right


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_case_has_committed_tiles_and_candidates(architecture: int) -> None:
    ops = [op for op in tune.OPS if workloads.runs_on(op, architecture)]
    for (key, case), same in tune.cases(ops).items():
        committed = tiles.of_architecture(key, case, architecture)
        found = tune.candidates(same[0], architecture)
        assert found[0] == committed
        assert len({str(sorted(tile.items())) for tile in found}) == len(found) > 1
        assert all(set(candidate) == set(committed) for candidate in found)


def test_workloads_are_segmenters() -> None:
    assert set(OPS) <= set(segmenter_kernels.__all__)
    shapes = [workload.shape for workload in workloads.of_op("attention", HALF, (1, 8))]
    assert len(shapes) == 16
    assert "8 x 1025, 12 x 64" in shapes
    (case,) = {workload.case for workload in workloads.of_op("upsample_argmax", HALF, (1,))}
    assert case == "16"
    product = next(one for one in workloads.of_op("linear_gelu", HALF, (8,)) if "768 to 3072" in one.shape)
    assert product.flops == 2 * 8 * 1025 * 768 * 3072


def test_a_tile_that_fails_or_answers_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = SMALL["add_layernorm"]
    arguments = drawn(workload)
    tile, right_or_not = tiles.of_architecture("add_layernorm", "64", 80), Judge(workload, arguments)
    assert tune.why_not(workload, tile, arguments, right_or_not) is None
    assert "want BLOCK_M, num_warps" in str(tune.why_not(workload, {"num_warps": 4}, arguments, right_or_not))
    right = segmenter_kernels.add_layernorm
    monkeypatch.setattr(segmenter_kernels, "add_layernorm", lambda *x, tile: [y + 0.1 for y in right(*x, tile=tile)])
    assert str(tune.why_not(workload, tile, arguments, right_or_not)).startswith("error 0.1")


def test_a_tile_that_kills_or_spoils_its_process_is_the_only_one_lost() -> None:
    process = "str(__import__('os').getpid())"
    whole, spoils, dies = f"({process}, True)", f"({process}, False)", "__import__('os')._exit(1)"
    with tune.Workers(1) as workers:
        found = list(workers.map(eval, [whole, spoils, whole, dies, whole, whole]))
        (again,) = workers.map(eval, [whole])
    assert found[0] == found[1]
    assert found[3] == "its process died"
    assert len({found[1], found[2], found[4]}) == 3
    assert found[4] == found[5] == again


@pytest.mark.parametrize(("raised", "usable"), [(None, True), (RuntimeError("illegal memory access"), False)])
def test_a_process_knows_that_it_is_spoiled(
    monkeypatch: pytest.MonkeyPatch, raised: RuntimeError | None, usable: bool
) -> None:
    made: list[str] = []

    def first(op: str, key: str, case: str) -> tuple[Workload, tuple[()], None]:
        made.append(f"{op}: {key} {case}")
        return SMALL["add_layernorm"], (), None

    def synchronize() -> None:
        if raised:
            raise raised

    monkeypatch.setattr(tune, "_first", first)
    monkeypatch.setattr(tune, "why_not", lambda *_: "wrong")
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert tune._compiles((("layernorm",), "add_layernorm", "64", {})) == ("wrong", usable)
    assert made == ["layernorm: add_layernorm 64"]


def test_a_tile_is_tried_with_every_op_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    same = tune.cases(["layernorm", "layernorm_quantize"])["add_layernorm", "256"]
    ops = tuple(tune.by_op(same))
    assert ops == ("layernorm", "layernorm_quantize")
    monkeypatch.setattr(Workload, "arguments", lambda self, device: ())
    monkeypatch.setattr(tune, "Judge", lambda workload, arguments: None)
    monkeypatch.setattr(tune.workers, "unspoiled", lambda: True)
    tune._first.cache_clear()
    for wrong in ops:
        monkeypatch.setattr(tune, "why_not", lambda workload, *_, op=wrong: "wrong" if workload.op == op else None)
        assert tune._compiles((ops, "add_layernorm", "256", {})) == ("wrong", True)
    monkeypatch.setattr(tune, "why_not", lambda *_: None)
    assert tune._compiles((ops, "add_layernorm", "256", {})) == (None, True)
    tune._first.cache_clear()


def test_a_job_without_an_answer_loses_its_process_alone() -> None:
    process = "(__import__('os').getpid(), True)"
    with tune.Workers(1) as workers:
        (first,) = workers.map(eval, [process])
        workers._timeout_s = 0.5  # only now: starting a process takes longer
        (hung,) = workers.map(eval, ["__import__('time').sleep(60)"])
        workers._timeout_s = 60.0
        (raised,) = workers.map(eval, ["1 / 0"])
        assert raised == "ZeroDivisionError: division by zero"
        (again,) = workers.map(eval, [process])
    assert hung.startswith("no answer within")
    assert first != again
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


class AtOnce:
    """`Workers` that need no process: every tile compiles."""

    def map(self, function: object, jobs: list[object]) -> list[None]:
        return [None] * len(jobs)


def test_tiles_are_tried_on_a_few_workloads_and_the_best_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    same = [replace(SMALL["add_layernorm"], shape=str(index)) for index in range(8)]
    tried = [{"BLOCK_M": index} for index in range(12)]
    timed: list[tuple[str, int, int]] = []

    def measure(call: object, arguments: list[Workload], replays: int) -> timing.Quantiles:
        call(arguments[0])
        workload, tile = timed[-1][:2]
        timed[-1] = (workload, tile, replays)
        # tile 0, the committed one, is the slowest; 11 the fastest, but wrong at the last shape
        return timing.Quantiles(2.0 - tile / 12, 0.0, 0.0)

    def launch(self: Workload, *arguments: object, tile: tiles.Tile) -> None:
        timed.append((self.shape, tile["BLOCK_M"], 0))

    monkeypatch.setattr(tune, "candidates", lambda workload, architecture, device: tried)
    monkeypatch.setattr(tune.tiles, "architecture_of", lambda device: 90)
    monkeypatch.setattr(Workload, "arguments", lambda self, device: ())
    monkeypatch.setattr(Workload, "launch", launch)
    monkeypatch.setattr(timing, "copies", lambda arguments, device: [(None,)])
    monkeypatch.setattr(timing, "measure", measure)
    wrong = ("7", 11)
    monkeypatch.setattr(tune, "Judge", lambda workload, arguments: None)
    monkeypatch.setattr(
        tune, "why_not", lambda workload, tile, *_: "wrong" if (workload.shape, tile["BLOCK_M"]) == wrong else None
    )
    tile, line = tune.tune("add_layernorm", "64", same, AtOnce())
    assert tile == {"BLOCK_M": 10}
    rough = {(shape, index) for shape, index, replays in timed if replays == tune._ROUGH_REPLAYS}
    final = {(shape, index) for shape, index, replays in timed if replays == tune._FINAL_REPLAYS}
    assert {shape for shape, _ in rough} == {"1", "4", "6"}
    assert {index for _, index in rough} == set(range(12))
    assert {shape for shape, _ in final} == {str(index) for index in range(8)}
    assert {index for _, index in final} == {10, 9, 8, 7, 6, 0}
    assert line.endswith("1.71 times as fast as the committed one")
    assert line.startswith("add_layernorm 64: 1.1667, ")


@pytest.mark.parametrize(("count", "tried"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 2, 3]), (5, [0, 2, 4])])
def test_workloads_tried_first_are_from_all_over_a_case(count: int, tried: list[int]) -> None:
    assert tune._spread(range(count)) == tried


def test_what_is_committed_for_a_gpu_is_what_tuning_is_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = next(iter(tune.cases(["linear_gelu"]).values()))
    assert tune.candidates(first, 90)[0] == tiles.of_architecture(first.key, first.case, 90)
    tuned = {**tiles.of_architecture(first.key, first.case, 90), "BLOCK_M": 5}
    tune.write("NVIDIA Toy 9001", {(first.key, first.case): tuned}, tmp_path)
    shutil.copy(tiles.FOLDER / "sm_90.json", tmp_path)
    monkeypatch.setattr(tiles, "FOLDER", tmp_path)
    monkeypatch.setattr(tiles, "architecture_of", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Toy 9001")
    assert tune.candidates(first, 90, torch.device("cuda"))[0] == tuned


def test_a_case_that_is_none_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune.checks, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit):
        tune.main(["--op", "attention", "--case", "16-63"])
    assert "--case 16-63: no case of attention" in capsys.readouterr().err


def test_what_is_timed_is_not_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_bytes = 50 << 20
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=cache_bytes))
    small = torch.zeros(1, 150, 32, 32, dtype=HALF)
    found = timing.copies((small, (512, 512)), torch.device("cuda"))
    assert len({each[0].data_ptr() for each in found}) == len(found)
    assert sum(each[0].nbytes for each in found) >= 2 * cache_bytes
    assert {each[1] for each in found} == {(512, 512)}
    assert len(timing.copies((torch.zeros(1, dtype=HALF),), torch.device("cuda"))) <= 2000


def test_the_best_tile_is_best_relative_to_the_best_of_each_workload() -> None:
    times = {0: [1.0, 100.0], 1: [2.0, 40.0], 2: [3.0, 300.0]}
    assert tune.ranked(times) == [1, 0, 2]


def test_tiles_are_written_beside_others_and_read_before_the_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = "NVIDIA Toy 9000"
    tune.write(gpu, {("add_layernorm", "64"): {"BLOCK_M": 3, "num_warps": 1}}, tmp_path)
    file = tune.write(gpu, {("linear", "plain_large"): {"BLOCK_M": 5}}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["NVIDIA_Toy_9000.json"]
    assert json.loads(file.read_text()) == {
        "add_layernorm": {"64": {"BLOCK_M": 3, "num_warps": 1}},
        "linear": {"plain_large": {"BLOCK_M": 5}},
    }
    committed = tiles.of_architecture("linear", "plain_large", 90)
    shutil.copy(tiles.FOLDER / "sm_90.json", tmp_path)
    monkeypatch.setattr(tiles, "FOLDER", tmp_path)
    monkeypatch.setattr(tiles, "architecture_of", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    assert tiles.of_device("add_layernorm", "64", torch.device("cuda")) == {"BLOCK_M": 3, "num_warps": 1}
    # of a version whose tiles had fewer sizes
    assert tiles.of_device("linear", "plain_large", torch.device("cuda")) == committed


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    """From a plain checkout, as on a machine with torch, Triton and NumPy alone."""
    kernels = Path(segmenter_kernels.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(kernels), "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "segmenter_kernels.tune", "--op", "attention", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == ("error: tuning times kernels on a CUDA device and there is none here; run it on one")
    assert not list(tmp_path.iterdir())


def test_labels_are_judged_by_their_logits() -> None:
    workload = replace(SMALL["upsample_argmax"], draw=lambda normal: (torch.zeros(1, 3, 2, 2, device=DEVICE), (4, 4)))
    arguments = drawn(workload)
    tied = torch.full((1, 4, 4), 2, dtype=torch.uint8, device=DEVICE)
    assert judge(workload, tied, arguments).right
