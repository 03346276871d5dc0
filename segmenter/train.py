"""The command that trains: `python -m segmenter.train --dataset shapes --out runs/shapes`."""

import sys
from collections.abc import Sequence

from segmenter.cli import run, share_cores
from segmenter.recipe import with_recipe
from segmenter.training.options import TrainOptions


def train(options: TrainOptions) -> int:
    """Train, or go on training, as the options say; 0 at the end, 128 + the signal's number when stopped by one.

    Raises SegmenterError for whatever a user can set right.
    """
    share_cores()
    from segmenter.training.run import run_training

    return run_training(options)


def main(argv: Sequence[str] | None = None) -> int:
    return run(train, TrainOptions, argv, expand=with_recipe)


if __name__ == "__main__":
    sys.exit(main())
