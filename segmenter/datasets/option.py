"""How the help of a command names the datasets its option takes: all there are, as `segmenter.datasets` lists them."""

from segmenter.datasets import DATASETS, ON_DISK
from segmenter.option import one_of

DATASET = one_of(DATASETS)
DATASET_ON_DISK = one_of(ON_DISK)
