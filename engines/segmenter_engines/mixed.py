"""Mixed precision by itself: the most sensitive layers stay in floating point until the mIoU holds."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from segmenter.errors import EngineError
from segmenter.metrics import signed
from segmenter_engines.judge import Judge
from segmenter_engines.layer_costs import Cost, costs
from segmenter_engines.qdq import layer_name
from segmenter_engines.recipe import Calibrated

RANKING_IMAGES = 4  # SQNR is a mean over thousands of patches of each


@dataclass(frozen=True)
class Trial:
    """One version tried: so many of the most sensitive layers in floating point."""

    kept: int
    miou: float
    drop: float
    drop_error: float | None  # its standard error, from the images being so few; None where it cannot be told


@dataclass(frozen=True)
class Search:
    """What was kept and why. `ranking`: every layer alone, the most sensitive first; `trials` in the order made."""

    kept: tuple[str, ...]  # weights' names
    max_drop: float
    reference_miou: float
    images: int
    split: str | None  # of a dataset, that the images are from
    ranking: tuple[Cost, ...]
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """As the manifest records it: of the ranking, the layers kept and the first one that is not."""
        rows = [cost.to_dict(self.reference_miou) for cost in self.ranking[: len(self.kept) + 1]]
        return {
            "kept": rows[:-1],
            "next": rows[-1],
            "max_drop": self.max_drop,
            "reference_miou": self.reference_miou,
            "images": self.images,
            "split": self.split,
            "ranking_images": min(RANKING_IMAGES, self.images),
            "trials": [asdict(trial) for trial in self.trials],
        }


def describe(mixed: dict[str, Any]) -> str:
    """What a manifest's record of a search says, in a few lines."""
    chosen = next(trial for trial in mixed["trials"] if trial["kept"] == len(mixed["kept"]))
    images = f"{mixed['images']} images" + (f" of {mixed['split']}" if mixed["split"] else "")
    lines = [
        f"mIoU {chosen['miou']:.4f} on {images}, {signed(chosen['drop'])} lost of {mixed['reference_miou']:.4f} with a"
        f" standard error of {chosen['drop_error']:.4f} where {mixed['max_drop']} may be; kept in floating point:"
        f" {len(mixed['kept']) or 'nothing'}"
    ]
    for cost in mixed["kept"]:
        left = "everything as it was" if cost["sqnr_db"] is None else f"{cost['sqnr_db']:.1f} dB"
        lines.append(f"  {cost['name']}: alone in 8 bits it leaves {left}")
    return "\n".join(lines)


def search(ready: Calibrated, judge: Judge, max_drop: float) -> Search:
    """Keep few layers in floating point, so many that the mIoU on the judge's images holds.

    It holds where what it loses is at most `max_drop` with one standard error added: of several versions, one that is
    lucky with few images would be found else. Layers are ranked by the SQNR they leave alone; how many are kept is
    found by doubling, then by halving between the last number that failed and the first that held: at most
    2 log2(layers) + 2 evaluations.
    Raises EngineError when no layer can be quantised within `max_drop`, or one image is to tell.
    """
    if len(judge) < 2:
        raise EngineError(
            f"--max-drop {max_drop}: 1 image to judge on tells no standard error; take more with --judge-images"
        )
    alone = {layer_name(weight): [weight] for weight in ready.layers}
    order = {name: weights[0] for name, weights in alone.items()}
    ranking = tuple(sorted(costs(ready, judge, alone, RANKING_IMAGES), key=lambda cost: cost.sqnr_db))
    trials: list[Trial] = []

    def holds(kept: int) -> bool:
        found = judge(ready.quantised([order[cost.name] for cost in ranking[:kept]]))
        trials.append(Trial(kept, found.miou, judge.reference - found.miou, found.drop_error))
        # a NaN does not hold
        return found.drop_error is not None and trials[-1].drop + found.drop_error <= max_drop

    kept = fewest(len(ranking), holds)
    if kept is None:
        last = trials[-1]
        error = "unknown" if last.drop_error is None else f"{last.drop_error:.4f}"
        raise EngineError(
            f"--max-drop {max_drop}: {ready.source} loses {last.drop:.4f} of mIoU, standard error {error}, even with"
            " one layer in 8 bits; allow more, judge on more images, or use the floating-point graph"
        )
    names = tuple(order[cost.name] for cost in ranking[:kept])
    return Search(names, max_drop, judge.reference, len(judge), judge.split, ranking, tuple(trials))


def fewest(layers: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number below `layers` that holds, for a test that goes on holding; None when none does.

    Of a test that does not, one that holds.
    """
    if holds(0):
        return 0
    failed, tried = 0, 1
    while not holds(min(tried, layers - 1)):
        failed = min(tried, layers - 1)
        if failed == layers - 1:
            return None
        tried *= 2
    held = min(tried, layers - 1)
    while held - failed > 1:
        middle = (held + failed) // 2
        if holds(middle):
            held = middle
        else:
            failed = middle
    return held
