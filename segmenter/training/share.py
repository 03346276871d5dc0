"""One process's parts of every batch: where several processes, or parts one after the other, make one update."""

from collections.abc import Iterator

from segmenter.training.data import Order, Place


class Share(Order):
    """Parts `first` to `first + parts - 1` of the `of` that each batch of an order is cut into, one after the other.

    The batches stay what they are however many processes there are, so a run goes on with more or fewer.
    """

    def __init__(self, order: Order, first: int, parts: int, of: int) -> None:
        super().__init__(order.images, order.batch, order.seed, order.first, order.steps)
        self.own, self.of = range(first, first + parts), of

    def __iter__(self) -> Iterator[list[Place]]:
        for places in super().__iter__():
            for part in self.own:
                yield places[len(places) * part // self.of : len(places) * (part + 1) // self.of]
