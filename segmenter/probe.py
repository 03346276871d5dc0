"""Fit a decoder on a frozen encoder: `python -m segmenter.probe INIT --out PROBED --dataset camvid`."""

import sys
from collections.abc import Sequence

from segmenter.cli import run, share_cores
from segmenter.training.options import ProbeOptions


def probe(options: ProbeOptions) -> int:
    share_cores()
    from segmenter.training.probe import run_probe

    return run_probe(options)


def main(argv: Sequence[str] | None = None) -> int:
    return run(probe, ProbeOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
