"""What 8 bits in the `triton` engine's blocks cost a checkpoint's labels, on a CPU: its blocks with PyTorch's ops.

python -m segmenter_bench.eight_bits runs/mine/best --dataset folder --data DATA
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import tyro
from torch import Tensor

from segmenter import load_model
from segmenter.cli import run as run_command
from segmenter.cores import usable_cores
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.datasets.option import DATASET
from segmenter.evaluation import evaluate_labels, require_labelled, require_same_classes
from segmenter.files import require_writable
from segmenter.inference import Inference, predictor
from segmenter.metrics import signed, sqnr_db
from segmenter.model import Segmenter
from segmenter.option import require_least
from segmenter_bench.eight_bit_ops import EightBitOps
from segmenter_bench.runs import table_of, wide_console, write_record
from segmenter_engines.sessions.eight_bits import KINDS, quantize_blocks

Choice = Literal["int8", "int8-scores", "fp8", "fp8-scores", "fp8-attention", "fp8-hopper", "fp8-hopper-128"]
_OPS: dict[Choice, EightBitOps] = {
    "int8": EightBitOps(),
    "int8-scores": EightBitOps(attention_in="int8 scores"),
    "fp8": EightBitOps(),
    "fp8-scores": EightBitOps(attention_in="fp8 scores"),
    "fp8-attention": EightBitOps(attention_in="fp8"),
    "fp8-hopper": EightBitOps(sums="whole"),
    "fp8-hopper-128": EightBitOps(sums="apart"),
}


@dataclass(frozen=True)
class Options:
    """mIoU, agreement with float32 and SQNR of the class masks with the blocks of the `triton` engine in 8 bits.

    No GPU is needed: the engine's blocks run on the CPU, rounded where its kernels round, all else in float32.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder."""
    dataset: Annotated[str, DATASET] = "shapes"
    """Dataset to judge on."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: str = "val"
    """train or val."""
    limit: int = 8
    """At most so many images, spread evenly over the split; 0 for all."""
    choices: tuple[Choice, ...] = get_args(Choice)[:5]
    """What to judge: int8 and fp8 as the engine has them, with exact sums.
    With the scores of attention in 8 bits too, or in fp8 all of attention, they are what no engine has.
    fp8-hopper keeps 13 bits of a sum, as Hopper does for the engine; fp8-hopper-128 of 128 products at a time.
    Imitating those takes a core half a minute an image (ViT-S/14, 884 patches)."""
    threads: int | None = None
    """CPU threads; all usable cores when left out."""
    json: Path | None = None
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        require_least(self, threads=1, limit=0)


class _Watched:
    """What a network says of a dataset's pictures: `row` against what another said of them."""

    def __init__(self, model: Segmenter, dataset: SegmentationDataset) -> None:
        self.masks: list[Tensor] = []
        self.labels: list[np.ndarray] = []
        model.decoder.register_forward_hook(lambda _module, _given, masks: self.masks.append(masks))
        matrix = evaluate_labels(
            predictor(model, Inference(device="cpu")),
            dataset,
            each=lambda _sample, labels, _: self.labels.append(labels),
        )
        require_labelled(matrix, dataset)
        self.miou = matrix.miou

    def row(self, name: str, truth: "_Watched") -> dict[str, Any]:
        same = sum(int((ours == theirs).sum()) for ours, theirs in zip(self.labels, truth.labels, strict=True))
        noise = sum(float((ours - theirs).square().sum()) for ours, theirs in zip(self.masks, truth.masks, strict=True))
        signal = sum(float(theirs.square().sum()) for theirs in truth.masks)
        return {
            "name": name,
            "miou": self.miou,
            "agreement": same / sum(labels.size for labels in self.labels),
            "sqnr_db": sqnr_db(signal, noise),
        }


def measure(options: Options) -> int:
    if options.json is not None:
        require_writable(options.json)
    torch.set_num_threads(options.threads or usable_cores())
    dataset = Subset(open_dataset(options.dataset, options.data, options.split), options.limit)

    def network() -> Segmenter:
        model = load_model(options.checkpoint).eval()
        model.fold_layer_scale()
        return model

    model = network()
    require_same_classes(model.config.classes, dataset, options.checkpoint)
    truth = _Watched(model, dataset)
    rows = [truth.row("fp32", truth)]
    for choice in options.choices:
        model = network()
        quantize_blocks(model, KINDS[choice.partition("-")[0]], torch.device("cpu"), torch.float32, _OPS[choice])
        rows.append(_Watched(model, dataset).row(choice, truth))
    table = table_of(["blocks"], ["mIoU", "drop", "pixels as in fp32", "SQNR dB"])
    for row in rows:
        sqnr = "exact" if math.isinf(row["sqnr_db"]) else f"{row['sqnr_db']:.1f}"
        drop = signed(rows[0]["miou"] - row["miou"])
        table.add_row(row["name"], f"{row['miou']:.4f}", drop, f"{row['agreement']:.2%}", sqnr)
    wide_console().print(table)
    if options.json is not None:
        write_record(options.json, options, {"images": len(dataset), "rows": rows})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(measure, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
