"""Samples to packed batches: order, view, encode, pack; resumable by one number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chiasm.core.batch import Batch, Encoded, pack
from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.order import index_at, place_of, randomness_at
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.views import View


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
        barren = 0
        while True:
            total = len(self.samples) * len(self.views)
            place = place_of(self.cursor, *self._strand)
            index, view = divmod(index_at(place, total, self.seed), len(self.views))
            sample = self.samples[index]
            try:
                seen = self.views[view](sample, randomness_at(place, self.seed))
                if seen is not None:
                    return self.processor.encode(seen)
            except DataError as error:
                self.quarantine.add(sample, error, len(self.samples))
            self.cursor += 1
            barren += 1
            if barren > 2 * total:
                raise DataError(
                    "no sample of the data suits this stage's view; "
                    "captions are needed to describe or draw"
                )
