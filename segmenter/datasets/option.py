"""How the help of a command names the datasets its option takes: all there are, as `segmenter.datasets` lists them."""

from collections.abc import Sequence

import tyro

from segmenter.datasets import DATASETS, ON_DISK


def _names(datasets: Sequence[str]) -> object:
    return tyro.conf.arg(metavar="{" + ",".join(datasets) + "}")


# for `Annotated`; whether a name is known is seen where the dataset is opened
DATASET = _names(DATASETS)
DATASET_ON_DISK = _names(ON_DISK)
