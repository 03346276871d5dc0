"""What linear layers cost: mIoU, and the SQNR of the class masks, when they alone are quantised."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

from segmenter_engines.judge import Judge
from segmenter_engines.qdq import layer_name
from segmenter_engines.recipe import Calibrated

KINDS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class Cost:
    """What it costs to quantise some layers and no others."""

    name: str
    layers: int
    sqnr_db: float
    miou: float

    def to_dict(self, reference: float) -> dict[str, Any]:
        """As JSON takes it, with the drop from a reference mIoU; SQNR is None where nothing changed at all."""
        return {
            "name": self.name,
            "layers": self.layers,
            "sqnr_db": round(self.sqnr_db, 2) if math.isfinite(self.sqnr_db) else None,
            "miou": round(self.miou, 6),
            "drop": round(reference - self.miou, 6),
        }


def groups(layers: Sequence[str]) -> dict[str, list[str]]:
    """Layers that go together: every block, every kind of layer, and all."""
    found: dict[str, list[str]] = {}
    for weight in layers:
        name = layer_name(weight)
        for kind in KINDS:
            if name.endswith(f".{kind}"):
                found.setdefault(name.removesuffix(f".{kind}"), []).append(weight)
    for kind in KINDS:
        if same := [weight for weight in layers if layer_name(weight).endswith(f".{kind}")]:
            found[f"all {kind}"] = same
    return found | {"all": list(layers)}


def costs(ready: Calibrated, judge: Judge, sets: Mapping[str, Sequence[str]], images: int = 0) -> list[Cost]:
    """The cost of quantising each set of layers and no other, in the order given.

    images: at most so many of the judge's, spread evenly; 0 for all.
    """
    found = []
    for name, chosen in track(sets.items(), "one at a time", console=Console(stderr=True), transient=True):
        judged = judge(ready.quantised(set(ready.layers) - set(chosen)), images)
        found.append(Cost(name, len(chosen), judged.sqnr_db, judged.miou))
    return found
