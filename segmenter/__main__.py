"""`python -m segmenter`: the `segmenter` console script."""

import sys

from segmenter.cli import main

if __name__ == "__main__":
    sys.exit(main())
