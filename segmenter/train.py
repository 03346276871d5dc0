"""The command that trains: `python -m segmenter.train --dataset shapes --out runs/shapes`."""

import os
import sys
from collections.abc import Sequence

from segmenter.cli import run
from segmenter.train_options import TrainOptions


def train(options: TrainOptions) -> int:
    """Train, or go on training, as the options say; 0 at the end, 128 + the signal's number when stopped by one.

    Raises SegmenterError for whatever a user can set right.
    """
    # OpenMP reads this once, as PyTorch is loaded. Threads that wait by spinning take the core from the processes that
    # load images, and from anything else at work: with one busy neighbour on two cores training ran at two fifths.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from segmenter.training import run_training

    return run_training(options)


def main(argv: Sequence[str] | None = None) -> int:
    return run(train, TrainOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
