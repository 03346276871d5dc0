"""What must hold of any engine, on engines that break one thing each; and the error of a drop, and speeds."""

import numpy as np
import pytest

from segmenter.config import Preprocess
from segmenter.errors import EngineError
from segmenter.metrics import ConfusionMatrix
from segmenter_engines import trade
from segmenter_engines.invariants import Invariants, check_invariants
from segmenter_engines.limits import LIMITS
from segmenter_engines.sampling import drop_error
from segmenter_engines.sessions import Session, Spec
from segmenter_engines.trade import Trade, time_trade
from segmenter_engines.verdict import Verdict
from tests.networks import CLASSES
from tests.small_engines import pictures

P = 8


class Sound(Session):
    """Class masks that are sums over patches: exact, so the same at any batch size."""

    engine = "sound"

    def __init__(self, precision="fp32", max_batch=4):
        batch = None if max_batch is None else (1, 1, max_batch)
        palette = ((0, 0, 0),) * len(CLASSES)
        super().__init__(Spec("m", precision, P, None, None, batch, CLASSES, palette, Preprocess()), 1)

    def _masks(self, x):
        B, _, H, W = x.shape
        means = x.reshape(B, 3, H // P, P, W // P, P).mean(axis=(3, 5))
        weights = np.linspace(-1, 1, 3 * len(CLASSES), dtype=np.float32).reshape(len(CLASSES), 3)
        # a product a row, as a product of all rows may round by their number
        return np.stack([np.einsum("kc,chw->khw", weights, row) for row in means])


class Leaks(Sound):
    def _masks(self, x):
        return super()._masks(x) + 0.0 * x.mean()


class Drifts(Sound):
    turn = 0

    def _masks(self, x):
        self.turn += 1
        return super()._masks(x) + np.float32(1e-6 * self.turn)


class FirstRowOnly(Sound):
    def _masks(self, x):
        return super()._masks(x[:1].repeat(len(x), axis=0))


class Swallows(Sound):
    def _masks(self, x):
        return np.nan_to_num(super()._masks(x))


class LabelsOnly(Sound):
    def _masks(self, x):
        raise EngineError("labels only")

    def _labels(self, x, size):
        return (np.nan_to_num(x[:, 0]) > 0).astype(np.uint8)


class LastRowIsTheFirst(Sound):
    def _masks(self, x):
        masks = super()._masks(x)
        return masks if len(x) < 3 else np.concatenate([masks[:-1], masks[:1]])


def checked(session, count=4):
    images = pictures(count, 64, 80)
    return check_invariants(session, images, [session(image) for image in images])


def test_a_sound_engine_keeps_rows_apart():
    assert checked(Sound()) == Invariants((2, 3, 4), 0.0, True, True, True)
    assert checked(Sound(max_batch=None)).batches == (2, 3, 8)
    assert checked(Sound(max_batch=64)).batches == (2, 3, 8)
    assert checked(Sound(max_batch=2)).batches == (2,)
    assert checked(Sound(max_batch=1)) == Invariants((), None, True, True, True)
    assert checked(LabelsOnly()) == Invariants((2, 3, 4), 0.0, True, None, None)


@pytest.mark.parametrize(
    ("engine", "fault"),
    [
        (Leaks, "NaN in one row of a batch changes the others"),
        (Drifts, "the same batch twice gives different scores"),
        (Swallows, "scores that are no numbers are labelled as if nothing were wrong"),
    ],
)
def test_an_engine_that_breaks_one_thing_is_told(engine, fault):
    found = checked(engine())
    assert fault in found.faults
    verdict = Verdict("x-fp32", "fp32", 4, 0.5, 0.5, 1.0, LIMITS["fp32"], invariants=found)
    assert fault in verdict.faults
    assert verdict.to_dict()["passed"] is False


def test_rows_that_are_all_the_first_are_told():
    found = checked(FirstRowOnly())
    assert found.row_disagreement > 0.1
    verdict = Verdict("x-int8", "int8", 4, 0.5, 0.5, 1.0, LIMITS["int8"], invariants=found)
    assert verdict.faults[0].startswith("a row of a batch differs from its image alone in")


@pytest.mark.parametrize("engine", [FirstRowOnly, LastRowIsTheFirst])
@pytest.mark.parametrize("count", [1, 2])
def test_rows_are_told_apart_where_images_are_fewer(engine, count):
    assert checked(engine(), count).row_disagreement > 0.1
    assert checked(Sound(max_batch=None), count) == Invariants((2, 3, 8), 0.0, True, True, True)


def test_integers_have_no_nan_and_are_not_blamed_for_it():
    assert checked(Swallows(precision="int8")) == Invariants((2, 3, 4), 0.0, True, True, None)


def matrices(hits, misses):
    found = []
    for right, wrong in zip(hits, misses, strict=True):
        one = ConfusionMatrix(2)
        one.matrix[:] = [[right, wrong], [0, 100]]
        found.append(one)
    return found


def test_the_error_of_a_drop_is_that_of_its_images():
    random = np.random.default_rng(0)
    wrong = random.integers(0, 21, 400)
    mine, reference = matrices(100 - wrong, wrong), matrices(np.full(400, 90), np.full(400, 10))
    assert drop_error(mine[:1], reference[:1]) is None
    assert drop_error(reference, reference) == 0.0

    # mIoU of sums: ((100 - w) / 100 + 100 / (100 + w)) / 2 of the mean w, whose error is std / sqrt(n)
    def wanted(count):
        w = wrong[:count]
        slope = (1 / 100 + 100 / (100 + w.mean()) ** 2) / 2
        return slope * w.std() / np.sqrt(count)

    for count in (25, 100, 400):
        error = drop_error(mine[:count], reference[:count])
        assert error == pytest.approx(wanted(count), rel=0.2)  # of 200 draws: 5 % a standard deviation


def test_one_pixel_of_a_class_that_no_truth_shows_is_one_pixel():
    def image(rare, wrong):  # of 3 classes, the last in the truth of one image alone
        one = ConfusionMatrix(3)
        one.matrix[:] = [[8000 - wrong, 0, wrong], [0, 8000, 0], [0, 0, 400 * rare]]
        return one

    reference = [image(index == 0, 0) for index in range(8)]
    mine = [*reference[:7], image(False, 1)]
    error = drop_error(mine, reference)
    assert 0 < error < 0.001  # where class 2 is not drawn, its IoU is no part of either mean
    alone = mine[7]
    assert alone.miou < 0.67
    assert alone.miou_in_truth > 0.9999


def test_a_drop_near_its_limit_is_said_to_be_uncertain():
    verdict = Verdict("x-fp16", "fp16", 4, 0.5, 0.5005, 1.0, LIMITS["fp16"], drop_error=0.001)
    assert verdict.faults == []
    assert "4 images are too few" in verdict.line()
    assert "mIoU 0.5000, -0.0005 to PyTorch's 0.5005 (standard error 0.0010)" in verdict.line()
    sure = Verdict("x-fp16", "fp16", 4, 0.5, 0.5005, 1.0, LIMITS["fp16"], drop_error=0.0001)
    assert sure.warnings == []
    # the limit holds however uncertain the drop is
    assert Verdict("x-fp16", "fp16", 4, 0.5, 0.502, 1.0, LIMITS["fp16"], drop_error=0.1).faults


class Clock:
    """A clock that stands still but for what engines take: a busy machine would make this a test of its neighbours."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Slow(Sound):
    """Takes so long an image, the first and every fifth ten times that."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def __call__(self, images):
        self.clock.now += self.seconds * (10 if self.calls % 5 == 0 else 1)
        self.calls += 1
        return images[..., 0]


def test_eight_bits_that_are_no_faster_are_a_failed_trade_and_no_fault(monkeypatch):
    clock, images = Clock(), pictures(1, 64, 80)
    monkeypatch.setattr(trade, "time", clock)
    slow, fast = Slow(clock, 0.3), Slow(clock, 0.1)
    good, bad = time_trade(fast, slow, images), time_trade(slow, fast, images)
    assert (good.pays, bad.pays) == (True, False)
    assert good.speedup == pytest.approx(3.0)
    assert bad.ms == pytest.approx(300.0)
    verdict = Verdict("x-int8", "int8", 4, 0.5, 0.5, 1.0, LIMITS["int8"], trade=bad)
    assert verdict.faults == []
    assert "passed; warning: a failed trade: 0." in verdict.line()
    assert verdict.to_dict()["trade"]["pays"] is False
    assert Trade("x", 1.0, 1.04).pays is False
    assert Trade("x", 1.0, 1.05).pays is True
