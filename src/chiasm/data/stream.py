"""Samples to packed batches: order, view, encode, pack; resumable by counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from chiasm.core.batch import Batch, Encoded, pack, round_up
from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.objectives import View
from chiasm.data.packing import Budget, Size, fill
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.reader import Reader
from chiasm.data.turns import Mixed, MixtureDraw, Turns

T = TypeVar("T")

EVEN = 64
"""Rows are filled up to a multiple of this many tokens, within the budget: kernels are made anew
for every shape they have not met, in bfloat16 on a CPU and in compiled blocks (LOG.md)."""


def pack_evenly(row: Sequence[Encoded], tokens: int, per_sample: bool = False) -> Batch:
    """pack() of one row, filled up to an even length within a budget of tokens."""
    length = sum(map(len, row))
    filled = max(length, min(round_up(length, EVEN), tokens))
    return pack([row], filled, per_sample)


class SampleStream:
    """Endless batches of whole samples, packed until the next one would pass `tokens`.

    Every sample passes through every view once an epoch of its source. A batch holds consecutive
    samples of the order (data.turns) or of a data shard of it, so the state is that order's
    counters. A sample that cannot be used goes to the quarantine. A sample longer than `tokens`
    makes a batch of its own. per_sample: as in core.batch.Batch. threads: that read ahead
    (data/reader.py).
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
        threads: int = 0,
    ):
        if not samples:
            raise DataError("no samples to train on; check the path given as --data")
        self.samples, self.views, self.processor = Mixed.of(samples), views, processor
        self.tokens, self.per_sample = tokens, per_sample
        self.quarantine = quarantine if quarantine is not None else Quarantine()
        self.turns = Turns(self.samples, len(views), seed)
        self.reader = Reader(self.samples, self.turns, threads)
        self._ahead: tuple[MixtureDraw, Any] | None = None

    def split(self, data_shard: int, count: int) -> None:
        """As core.protocols.Stream; the counters count the data shard's own places."""
        self.turns.split(data_shard, count)

    def state_dict(self) -> dict:
        return self.turns.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.turns.load_state_dict(state)
        self.reader.forget()
        self._ahead = None

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._next()

    def __next__(self) -> Batch:
        return self._next()

    def _next(self) -> Batch:
        chosen: list[Any] = []
        used = 0
        while True:
            turn, encoded = self._ahead or self._next_usable(self._encode)
            if chosen and used + len(encoded) > self.tokens:
                self._ahead = turn, encoded  # not counted as used yet: state_dict forgets nothing
                return self._pack(chosen)
            chosen.append(encoded)
            used += len(encoded)
            self._ahead = None
            self.turns.use(turn, len(encoded))

    def _encode(self, sample: Sample) -> Any:
        """What is packed of a sample; its length is its tokens'."""
        return self.processor.encode(sample)

    def _pack(self, row: Sequence[Any]) -> Batch:
        return pack_evenly(row, self.tokens, self.per_sample)

    def _next_usable(self, make: Callable[[Sample], T]) -> tuple[MixtureDraw, T]:
        """The next turn of which something can be made, and that; turns before it that turn out to
        be of no use are skipped. DataError when none of two epochs was."""
        for _ in range(2 * len(self.samples) * len(self.views) + 1):
            turn = self.turns.next()
            made = self._at(turn, make)
            if made is not None:
                return turn, made
            self.turns.skip(turn)
        name = self.samples.sources[turn.source].name
        raise DataError(
            f"no sample of the {f'source {name}' if name else 'data'} suits this stage's view; "
            "captions are needed to describe or draw"
        )

    def _at(self, turn: MixtureDraw, make: Callable[[Sample], T]) -> T | None:
        """What is made of the sample whose turn it is, None for one that cannot be used."""
        sample = Sample((), f"sample {turn.index}")  # until it has been read
        try:
            sample = self._read(turn)
            seen = self.views[turn.view](sample, turn.randomness())
            return None if seen is None else make(seen)
        except DataError as error:
            self.quarantine.add(sample, error, len(self.samples))
            return None

    def _read(self, turn: MixtureDraw) -> Sample:
        return self.reader.next(turn)


Place = tuple[int, int]
"""Source and place in its order: what Turns.at finds again."""


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
        self._rows: list[list[Place]] = []
        self._waiting: list[tuple[Place, Size]] = []

    def state_dict(self) -> dict:
        waiting = [[*place, size.tokens, size.patches] for place, size in self._waiting]
        rows = [[list(place) for place in row] for row in self._rows]
        return {**super().state_dict(), "rows": rows, "waiting": waiting}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._rows = [[(source, place) for source, place in row] for row in state["rows"]]
        self._waiting = [((s, place), Size(t, p)) for s, place, t, p in state["waiting"]]

    def _next(self) -> Batch:
        while True:
            while not self._rows:
                self._fill()
            for place in chain(*self._rows[:2]):  # this row and the next
                self.reader.begin(self.turns.at(*place))
            places = self._rows.pop(0)
            found = [self._at(self.turns.at(*place), self._encode) for place in places]
            row = [encoded for encoded in found if encoded is not None]
            if row:
                return self._pack(row)

    def _read(self, turn: MixtureDraw) -> Sample:
        return self.reader.read(turn)  # measuring needs no pixels

    def _fill(self) -> None:
        """Measure the next window and lay out its rows, in an order of their own: those filled
        first hold the longest samples."""
        turns = self.turns
        random = np.random.default_rng((turns.seed, 2, turns.passed, *turns.data_shard))
        measured = [*self._waiting, *(self._measure_next() for _ in range(self.window))]
        rows, left = fill([size for _, size in measured], self.budget)
        order = random.permutation(len(rows))
        self._rows = [[measured[i][0] for i in rows[number]] for number in order]
        self._waiting = [measured[i] for i in left]

    def _measure_next(self) -> tuple[Place, Size]:
        """Place and size of the next usable sample, which is counted as used."""
        turn, size = self._next_usable(self.processor.measure)
        self.turns.use(turn, size.tokens)
        return (turn.source, turn.place), size
