"""bench-routines: what it prints beside its figures."""

import pytest

routines = pytest.importorskip("segmenter_bench.routines", reason="segmenter_trt is not compiled; run pip install .")


@pytest.mark.parametrize(("share", "warned"), [(0.01, False), (0.62, True), (None, False)])
def test_a_busy_machine_is_told_beside_the_figures(
    share: float | None, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(routines.Neighbours, "share", lambda _: share)
    assert routines.main(["--rounds", "1", "--classes", "2"]) == 0
    printed = capsys.readouterr().out
    assert "times faster" in printed
    assert ("Other programs took up to 62% of the CPU cores" in printed) == warned
