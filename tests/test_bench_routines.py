"""bench-routines: its figures, and what it prints beside them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

routines = pytest.importorskip("segmenter_bench.routines", reason="segmenter_trt is not compiled; run pip install .")


@pytest.mark.parametrize(("share", "warned"), [(0.01, False), (0.62, True), (None, False)])
def test_a_busy_machine_is_told_beside_the_figures(
    share: float | None,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(routines.Neighbours, "share", lambda _: share)
    path = tmp_path / "r.json"
    assert routines.main(["--rounds", "1", "--classes", "2", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert (len(record["rows"]), record["classes"], record["others_busy"]) == (4, 2, share)
    printed = capsys.readouterr().out
    assert "times faster" in printed
    assert ("Other programs took up to 62% of the CPU cores" in printed) == warned


@pytest.mark.parametrize("masks", [routines.smooth, routines.unrelated])
def test_labels_of_the_papers_classes_take_an_eighth_of_pytorchs_time(masks: Callable[[int], np.ndarray]) -> None:
    # a hundred times less and more on an idle core: what else runs cannot take that
    with_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, theirs, mine = routines.labels_row("labels", masks(150), rounds=3)
    finally:
        torch.set_num_threads(with_threads)
    assert theirs >= 8 * mine


def test_pytorch_upsamples_in_the_layout_in_which_it_is_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    raced: list[Callable[[], torch.Tensor]] = []
    monkeypatch.setattr(routines, "in_turns", lambda theirs, mine, rounds: raced.append(theirs) or (1.0, 1.0))
    routines.labels_row("labels", routines.smooth(5), rounds=1)
    layouts = []

    def interpolate(x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return x

    monkeypatch.setattr(routines.F, "interpolate", interpolate)
    raced[0]()
    assert layouts == [True]


def test_what_other_programs_take_is_in_no_figure() -> None:
    theirs, mine = routines.in_turns(lambda: time.sleep(0.02), lambda: None, 3)
    assert max(theirs, mine) < 10.0
