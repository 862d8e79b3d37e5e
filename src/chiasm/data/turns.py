"""Whose turn it is: an order through several sources that is a function of counters alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import overload

import numpy as np

from chiasm.core.errors import CheckpointError, DataError
from chiasm.core.sample import Sample
from chiasm.data.mixture import Ingredient, Mixture, weights
from chiasm.data.order import index_at, place_of, randomness_at

SPACING = 1_000_003  # between the seeds of sources, so that equally many samples get other orders


@dataclass(frozen=True)
class Source:
    """One of a mixture, of so many samples; weight and epochs as of mixture.Ingredient."""

    name: str
    count: int
    weight: float
    epochs: int


class Selected(Sequence[Sample]):
    """Some of a sequence's samples, read when they are asked for."""

    def __init__(self, samples: Sequence[Sample], places: Sequence[int] | np.ndarray):
        self.samples, self.places = samples, np.asarray(places, np.int64)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return Selected(self.samples, self.places[index])
        return self.samples[int(self.places[index])]


class Mixed(Sequence[Sample]):
    """The samples of a mixture's sources, one source after another, with what streams need to mix
    them. anew: weights by name in place of the mixture's own."""

    def __init__(
        self,
        parts: Sequence[Sequence[Sample]],
        mixture: Mixture,
        anew: dict[str, float] | None = None,
    ):
        self.parts, self.mixture, self.anew = parts, mixture, anew or {}
        self.starts = [0, *accumulate(map(len, parts))]
        weighed = weights(mixture, [len(part) for part in parts], self.anew)
        self.sources = [
            Source(one.name, len(part), weight, one.epochs)
            for one, part, weight in zip(mixture.sources, parts, weighed, strict=True)
        ]

    @staticmethod
    def of(samples: Sequence[Sample]) -> Mixed:
        """Any samples as a mixture, of one source if they are none."""
        if isinstance(samples, Mixed):
            return samples
        return Mixed([samples], Mixture((Ingredient(""),)))

    def weighed(self, anew: dict[str, float]) -> Mixed:
        """The same samples with other weights; those of an empty dict are the mixture's own."""
        return Mixed(self.parts, self.mixture, anew)

    def keep(self, test: Callable[[Sample], object]) -> Mixed:
        """The mixture of the samples that pass."""
        kept = [Selected(p, [i for i, one in enumerate(p) if test(one)]) for p in self.parts]
        return Mixed(kept, self.mixture, self.anew)

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return Selected(self, range(len(self))[index])
        place = range(len(self))[index]  # IndexError, negative numbers
        number = bisect_right(self.starts, place) - 1
        return self.parts[number][place - self.starts[number]]


@dataclass
class Counts:
    """How far a source has come: places passed, samples used of them and their tokens."""

    cursor: int = 0
    samples: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class MixtureDraw:
    """Source `source` is next, with sample `index` of the whole mixture under view `view`; `place`
    in the source's own endless order, `seed` of that order."""

    source: int
    index: int
    view: int
    place: int
    seed: int

    def randomness(self) -> np.random.Generator:
        """For augmentation: the same at every visit of this place."""
        return randomness_at(self.place, self.seed)


class Turns:
    """The endless order of a mixture, of every sample under every view once an epoch of its source.

    Next is the source that is furthest behind its weight in samples or tokens used; within a source
    the order is that of data.order. So the counters are the whole state, any two orders that count
    alike go on alike, and after n samples no source is more than one away from its part. A data
    shard counts its own places (core.protocols.Stream.split).
    """

    def __init__(self, samples: Mixed, views: int, seed: int):
        self.sources, self.starts, self.unit = samples.sources, samples.starts, samples.mixture.unit
        self.views, self.seed = views, seed
        self.counts = [Counts() for _ in self.sources]
        self.split(0, 1)

    def split(self, data_shard: int, count: int) -> None:
        self.data_shard = (data_shard, count)
        # Strands do not begin in step: else all would see the same source at the same time.
        self._phase = np.random.default_rng((self.seed, 2, data_shard)).random(len(self.sources))

    def next(self) -> MixtureDraw:
        """Raises DataError when all sources have been seen as often as they may."""
        number = self._whose()
        return self.of_cursor(number, self.counts[number].cursor)

    def of_cursor(self, number: int, cursor: int) -> MixtureDraw:
        """The turn of a source when its cursor stands there."""
        return self.at(number, place_of(cursor, *self.data_shard))

    def at(self, number: int, place: int) -> MixtureDraw:
        """The turn at a place of a source's order, whoever's it is."""
        seed = self.seed + SPACING * number
        index, view = divmod(index_at(place, self._total(number), seed), self.views)
        return MixtureDraw(number, self.starts[number] + index, view, place, seed)

    @property
    def passed(self) -> int:
        """Places passed of all sources."""
        return sum(counts.cursor for counts in self.counts)

    def skip(self, turn: MixtureDraw) -> None:
        """What was next could not be used."""
        self.counts[turn.source].cursor += 1

    def use(self, turn: MixtureDraw, tokens: int = 1) -> None:
        """What was next was used, so many tokens long."""
        counts = self.counts[turn.source]
        counts.cursor += 1
        counts.samples += 1
        counts.tokens += tokens

    def state_dict(self) -> dict:
        pairs = zip(self.sources, self.counts, strict=True)
        return {"sources": {source.name: dict(vars(counts)) for source, counts in pairs}}

    def load_state_dict(self, state: dict) -> None:
        saved, names = state.get("sources", {}), [source.name for source in self.sources]
        if list(saved) != names:
            raise CheckpointError(
                f"the checkpoint counts the sources {', '.join(saved) or 'of another version'}, "
                f"the data has {', '.join(names)}; resume with the data that the run began with"
            )
        self.counts = [Counts(**saved[name]) for name in names]

    def _total(self, number: int) -> int:
        """Places of a source's epoch."""
        return self.sources[number].count * self.views

    def _whose(self) -> int:
        running = [i for i in range(len(self.sources)) if not self._finished(i)]
        if not running:
            raise DataError(
                "every source has been seen as often as its epochs allow; "
                "train for fewer steps or allow more epochs"
            )
        return min(running, key=self._lead)

    def _lead(self, number: int) -> float:
        spent = getattr(self.counts[number], self.unit)
        return (spent + self._phase[number]) / self.sources[number].weight

    def _finished(self, number: int) -> bool:
        source = self.sources[number]
        place = place_of(self.counts[number].cursor, *self.data_shard)
        over = source.epochs and place >= source.epochs * self._total(number)
        return not source.count or not source.weight or bool(over)
