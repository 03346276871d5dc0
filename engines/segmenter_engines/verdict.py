"""The verdict of `verify`: what was found, what of it is past its limit, and how a manifest tells it."""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from segmenter.metrics import change
from segmenter_engines.invariants import Invariants
from segmenter_engines.limits import Limit
from segmenter_engines.manifest import read_manifest
from segmenter_engines.trade import Trade
from segmenter_engines.verified import facts_digest

UNTRAINED = 0.05  # mIoU a trained network is above


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    engine: str
    precision: str
    images: int
    miou: float
    reference_miou: float
    agreement: float  # share of all pixels labelled as PyTorch labels them
    limit: Limit
    drop_error: float | None = None  # standard error of the drop, from the images being so few; None for one image
    invariants: Invariants = field(default_factory=Invariants)
    ends: dict[str, float] = field(default_factory=dict)  # agreement at its smallest and largest size, by HxW
    trade: Trade | None = None
    device: str = "cpu"
    cpu_flags: tuple[str, ...] = ()  # where it was found: products of 8 bits are not the same on every CPU

    @property
    def miou_drop(self) -> float:
        return self.reference_miou - self.miou

    @property
    def faults(self) -> list[str]:
        """What is past its limit, in words; empty when the engine passes."""
        found = []
        # written so that a NaN fails
        if not self.miou_drop <= self.limit.miou_drop:
            found.append(f"mIoU dropped by {self.miou_drop:.4f}{self._error()}, limit {self.limit.miou_drop}")
        if not 1.0 - self.agreement <= self.limit.disagreement:
            found.append(f"{1 - self.agreement:.2%} of pixels disagree, limit {self.limit.disagreement:.2%}")
        found += [
            f"at {size} {1 - agreement:.2%} of pixels disagree, limit {self.limit.disagreement:.2%}"
            for size, agreement in self.ends.items()
            if not 1.0 - agreement <= self.limit.disagreement
        ]
        rows = self.invariants.row_disagreement
        if rows is not None and not rows <= self.limit.rows:
            found.append(
                f"a row of a batch differs from its image alone in {rows:.2%} of pixels, limit {self.limit.rows:.2%}"
            )
        return found + self.invariants.faults

    @property
    def warnings(self) -> list[str]:
        """What is no fault and should be known: what the images cannot tell, and speed that is not there."""
        found = []
        error = self.drop_error
        if error is not None and abs(self.miou_drop - self.limit.miou_drop) < 2.0 * error:
            found.append(f"{self.images} images are too few to be sure of a limit of {self.limit.miou_drop}; take more")
        if self.reference_miou < UNTRAINED:
            found.append(
                f"the checkpoint itself reaches mIoU {self.reference_miou:.4f} on these images, so that no drop says"
                " anything; see that it is trained, on these classes"
            )
        if self.trade is not None and not self.trade.pays:
            found.append(self.trade.line())
        return found

    def _error(self) -> str:
        return "" if self.drop_error is None else f" (standard error {self.drop_error:.4f})"

    def line(self) -> str:
        """The verdict in one line."""
        outcome = "passed" if not self.faults else "FAILED: " + "; ".join(self.faults)
        trade = f", {self.trade.line()}" if self.trade is not None and self.trade.pays else ""
        warnings = "".join(f"; warning: {text}" for text in self.warnings)
        return (
            f"{self.engine}: mIoU {self.miou:.4f}, {change(self.miou_drop)} to PyTorch's {self.reference_miou:.4f}"
            f"{self._error()}, {self.agreement:.3%} of pixels agree{trade}, {outcome}{warnings}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As a manifest holds it; what is no number is null."""
        told = asdict(self) | {"miou_drop": self.miou_drop}
        if self.trade is not None:
            told["trade"] |= {"speedup": self.trade.speedup, "pays": self.trade.pays}
        told = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in told.items()}
        return told | {"passed": not self.faults, "faults": self.faults, "warnings": self.warnings}


def record(artifact: Path, verdict: Verdict) -> None:
    """Add the verdict to the artifact's manifest, beside those of other engines; a signature no longer fits then."""
    manifest = read_manifest(artifact)
    told = verdict.to_dict() | {"sha256": manifest.sha256, "facts_sha256": facts_digest(manifest)}
    replace(manifest, verification={**(manifest.verification or {}), verdict.engine: told}).write(artifact)
