"""The dry run of tuning: what it compiles, what it refuses, and what it says; in processes that compile."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from segmenter_kernels import checks, dry_run, tune
from segmenter_kernels.tiles import Tile
from segmenter_kernels.workload import Workload
from tests.kernels.uninterpreted import python, script


def test_tiles_are_compiled_as_a_launch_would_and_the_impossible_told_why() -> None:
    result = script(
        """
        from segmenter_kernels import tiles, workloads
        from segmenter_kernels.dry_run import compiled_in_vain
        import torch

        half = torch.float16
        workload = workloads.linear("linear_residual", 8, 1025, 768, half)
        committed = tiles.of_architecture(workload.key, workload.case, 90)
        assert compiled_in_vain(workload, committed, 90) == []
        deep = compiled_in_vain(workload, {**committed, "num_stages": 12}, 90)
        assert len(deep) == 2 and "registers spilt" in deep[0], deep
        assert deep[1].endswith("bytes of shared memory, limit 232448"), deep
        # the same tile again, and for another GPU, from which nothing is left in this process
        assert compiled_in_vain(workload, {**committed, "num_stages": 12}, 90) == deep
        other = tiles.of_architecture(workload.key, workload.case, 80)
        assert compiled_in_vain(workload, other, 80) == []
        """
    )
    assert result.returncode == 0, result.stderr


def test_it_counts_what_there_is_and_what_is_worth_a_gpus_time() -> None:
    arguments = ("-m", "segmenter_kernels.tune", "--dry-run", "--workers", "1", "--op", "quantize", "--case", "256")
    result = python(*arguments)
    assert result.returncode == 0, result.stderr
    tried = len(tune.candidates(tune.cases(["quantize"])["quantize", "256"][0], 90))
    lines = result.stdout.splitlines()
    assert lines[0] == f"quantize 256: {tried} tiles, {tried} worth a GPU's time"
    assert lines[-1] == f"sm_90: {tried} tiles of 1 cases, {tried} worth a GPU's time"


class AtOnce:
    """`Workers` without processes."""

    def __init__(self, count: int) -> None:
        pass

    def map(self, function: Callable[[Any], tuple[Any, bool]], jobs: list[Any]) -> list[Any]:
        return [function(job)[0] for job in jobs]

    def __enter__(self) -> "AtOnce":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("refusing", ["layernorm", "layernorm_quantize"])
def test_a_tile_is_refused_where_one_of_the_ops_that_take_it_refuses_it(
    refusing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tune.cases(["layernorm", "layernorm_quantize"])
    case = ("add_layernorm", "256")
    tried = tune.candidates(cases[case][0], 90)
    compiled: list[str] = []

    def in_vain(workload: Workload, tile: Tile, architecture: int) -> list[str]:
        compiled.append(workload.op)
        return ["spilt"] if tile == tried[1] and workload.op == refusing else []

    monkeypatch.setattr(dry_run, "compiled_in_vain", in_vain)
    monkeypatch.setattr(dry_run, "Workers", AtOnce)
    assert dry_run.dry_run({case: cases[case]}, 90, 1) == 0
    assert compiled == ["layernorm", "layernorm_quantize"] * len(tried)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"add_layernorm 256: {len(tried)} tiles, {len(tried) - 1} worth a GPU's time"
    assert lines[1] == f"  not {json.dumps(dict(tried[1]))}: spilt"
    assert len(lines) == 3


@pytest.mark.skipif(not checks.INTERPRETED, reason="this process compiles kernels for its GPU")
def test_while_interpreting_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--dry-run", "--op", "quantize"]) == 2
    assert capsys.readouterr().err.startswith("error: TRITON_INTERPRET is set")
