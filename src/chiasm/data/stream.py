"""Samples to packed batches: order, view, encode, pack; resumable by one number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from chiasm.core.batch import Batch, Encoded, pack
from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.order import index_at, place_of, randomness_at
from chiasm.data.packing import Budget, Size, fill
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.views import View

T = TypeVar("T")


class SampleStream:
    """Endless batches of whole samples, packed until the next one would pass `tokens`.

    Every sample passes through every view once an epoch. The order is a function of (seed, cursor),
    and a batch holds consecutive samples of it or of a strand of it, so the state is one number. A
    sample that cannot be used goes to the quarantine. A sample longer than `tokens` makes a batch
    of its own. per_sample: as in core.batch.Batch.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        views: Sequence[View],
        processor: Processor,
        tokens: int,
        seed: int,
        quarantine: Quarantine | None = None,
        per_sample: bool = False,
    ):
        if not samples:
            raise DataError("no samples to train on; check the path given as --data")
        self.samples, self.views, self.processor = samples, views, processor
        self.tokens, self.seed, self.per_sample = tokens, seed, per_sample
        self.quarantine = quarantine if quarantine is not None else Quarantine()
        self.cursor = 0
        self._strand = (0, 1)
        self._ahead: Encoded | None = None

    def split(self, strand: int, count: int) -> None:
        """As core.protocols.Stream; the cursor counts the strand's own places."""
        self._strand = (strand, count)

    def state_dict(self) -> dict:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: dict) -> None:
        self.cursor, self._ahead = state["cursor"], None

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._next()

    def _next(self) -> Batch:
        chosen: list[Encoded] = []
        used = 0
        while True:
            encoded = self._ahead or self._encode_next()
            if chosen and used + len(encoded) > self.tokens:
                self._ahead = encoded  # cursor still points at it: state_dict forgets nothing
                return pack([chosen], per_sample=self.per_sample)
            chosen.append(encoded)
            used += len(encoded)
            self._ahead = None
            self.cursor += 1

    def _encode_next(self) -> Encoded:
        """The next usable sample; the cursor is left on it."""
        for place in self._places():
            encoded = self._at(place, self.processor.encode)
            if encoded is not None:
                return encoded
        raise AssertionError("places are endless")

    def _places(self) -> Iterator[int]:
        """Places of the whole order from the cursor's on; the cursor is moved as one after another
        turns out to be of no use. DataError when none of two epochs was."""
        total = len(self.samples) * len(self.views)
        for _ in range(2 * total + 1):
            yield place_of(self.cursor, *self._strand)
            self.cursor += 1
        raise DataError(
            "no sample of the data suits this stage's view; captions are needed to describe or draw"
        )

    def _at(self, place: int, make: Callable[[Sample], T]) -> T | None:
        """What is made of the sample at a place, None for one that cannot be used."""
        index, view = divmod(
            index_at(place, len(self.samples) * len(self.views), self.seed), len(self.views)
        )
        sample = self.samples[index]
        try:
            seen = self.views[view](sample, randomness_at(place, self.seed))
            return None if seen is None else make(seen)
        except DataError as error:
            self.quarantine.add(sample, error, len(self.samples))
            return None


class KnapsackStream(SampleStream):
    """Endless batches of one full row: windows of the order are measured from headers and filled
    into rows (data/packing.py), so that nearly no token is left unused and rows hold like numbers
    of patches. Nothing is seen twice or left out; the order within a window is another.

    The state is the rows of the window still to come and what waits for the next one, as places of
    the order: a few hundred numbers. patches: the most of a row, None for any number.
    """

    def __init__(self, *parts, patches: int | None = None, window: int = 512, **more):
        super().__init__(*parts, **more)
        self.budget, self.window = Budget(self.tokens, patches), window
        self._rows: list[list[int]] = []
        self._waiting: list[tuple[int, Size]] = []

    def state_dict(self) -> dict:
        waiting = [[place, size.tokens, size.patches] for place, size in self._waiting]
        rows = [list(row) for row in self._rows]
        return {"cursor": self.cursor, "rows": rows, "waiting": waiting}

    def load_state_dict(self, state: dict) -> None:
        self.cursor = state["cursor"]
        self._rows = [list(row) for row in state["rows"]]
        self._waiting = [(place, Size(t, p)) for place, t, p in state["waiting"]]

    def _next(self) -> Batch:
        while True:
            while not self._rows:
                self._fill()
            places = self._rows.pop(0)
            found = [self._at(place, self.processor.encode) for place in places]
            row = [encoded for encoded in found if encoded is not None]
            if row:
                return pack([row], per_sample=self.per_sample)

    def _fill(self) -> None:
        """Measure the next window and lay out its rows, in an order of their own: those filled
        first hold the longest samples."""
        random = np.random.default_rng((self.seed, 2, self.cursor, *self._strand))
        measured = [*self._waiting, *(self._measure_next() for _ in range(self.window))]
        rows, left = fill([size for _, size in measured], self.budget)
        order = random.permutation(len(rows))
        self._rows = [[measured[i][0] for i in rows[number]] for number in order]
        self._waiting = [measured[i] for i in left]

    def _measure_next(self) -> tuple[int, Size]:
        """Place and size of the next usable sample; the cursor is left behind it."""
        for place in self._places():
            size = self._at(place, self.processor.measure)
            if size is not None:
                self.cursor += 1
                return place, size
        raise AssertionError("places are endless")
