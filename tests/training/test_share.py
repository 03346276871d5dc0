"""A batch cut into parts: each image in one part, whoever takes how many of them, from any update on."""

import pytest

from segmenter.training.data import Order
from segmenter.training.share import Share


@pytest.mark.parametrize("batch", [4, 5, 7])
@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_parts_make_up_the_batches(batch: int, processes: int, accumulate: int) -> None:
    order = Order(11, batch, seed=3, first=2, steps=6)
    of = processes * accumulate
    taken = [list(Share(order, rank * accumulate, accumulate, of)) for rank in range(processes)]
    assert [len(parts) for parts in taken] == [4 * accumulate] * processes
    for update, places in enumerate(order):
        parts = [part for each in taken for part in each[update * accumulate : (update + 1) * accumulate]]
        assert [place for part in parts for place in part] == places
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) >= 1
