"""How far an engine may be from PyTorch in fp32: the one place that holds the limits of each precision."""

from dataclasses import dataclass

from segmenter.errors import EngineError


@dataclass(frozen=True)
class Limit:
    """How far an engine may be from PyTorch in fp32."""

    miou_drop: float  # mIoU lost, 0 to 1
    disagreement: float  # share of pixels labelled otherwise
    rows: float  # share of an image's pixels labelled otherwise in a batch than alone


# Rows: other kernels at another batch size round otherwise, and 8 bits turn a last bit into a step of 1 / 255; a batch
# that is really wrong differs in tens of per cent.
LIMITS = {
    "fp32": Limit(miou_drop=0.001, disagreement=0.001, rows=0.001),
    "fp16": Limit(miou_drop=0.001, disagreement=0.01, rows=0.001),
    # 8 bits of mantissa where fp16 has 11: more labels near a tie turn, to the better as often as the worse. PyTorch's
    # bf16 on CamVid (ViT-S, 101 images): 0.00 points lost with a standard error of 0.01, 0.13 % of pixels otherwise
    "bf16": Limit(miou_drop=0.001, disagreement=0.02, rows=0.005),
    "fp8": Limit(miou_drop=0.002, disagreement=0.1, rows=0.01),
    "int8": Limit(miou_drop=0.005, disagreement=0.1, rows=0.01),
}
# Verified on so many where nothing else is said. The drop is judged as it is measured, whatever its standard error: on
# CamVid, ViT-S, int8 that loses 0.30 points on all 101 images lost 0.40 +- 0.12 on 16 and 0.29 +- 0.09 on 32.
IMAGES = 32
SPEEDUP = 1.05  # times the images per second of floating point that 8 bits must reach to be worth what they cost


def limit_of(name: str) -> Limit:
    """The limit of an engine by its name, such as `openvino-int8`."""
    return LIMITS[name.rsplit("-", 1)[-1]]


def require_drop(max_drop: float) -> None:
    """Raises EngineError for a mIoU drop that is none."""
    if not 0.0 <= max_drop <= 1.0:
        raise EngineError(f"--max-drop {max_drop}: wanted a loss of mIoU from 0 to 1, such as 0.005")
