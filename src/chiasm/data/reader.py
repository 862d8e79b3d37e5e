"""Samples read, and their images decoded, by threads before it is their turn.

Only when they are read changes, never which or in what order: batches, resuming and the errors of
bad samples are the same for any number of threads. Threads, because decoding lets others run
meanwhile, and processes would pickle every image.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import PIL.Image
import torch

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Part, Sample
from chiasm.data.turns import Mixed, MixtureDraw, Turns

AHEAD = 8  # turns of a source begun for each thread
MOST = 8  # threads: more wait for each other's Python


@dataclass(frozen=True, eq=False)
class Decoded(Image):
    """An image that has been decoded; still known by its encoded bytes."""

    image: PIL.Image.Image | None = None

    def load(self) -> PIL.Image.Image:
        return super().load() if self.image is None else self.image


class Reader:
    """The samples of a mixture in the order of its turns; threads 0 reads them when asked."""

    def __init__(self, samples: Mixed, turns: Turns, threads: int):
        self.samples, self.turns, self.ahead = samples, turns, AHEAD * threads
        self._pool = ThreadPoolExecutor(threads, "reader") if threads else None
        self.forget()

    def forget(self) -> None:
        """Begin anew where the turns stand now."""
        self._begun: dict[tuple[int, int], Future[Sample]] = {}
        self._reached = [0] * len(self.turns.sources)

    def next(self, turn: MixtureDraw) -> Sample:
        """The sample whose turn it is, the next ones of its source begun. Raises DataError."""
        if self._pool:
            cursor = self.turns.counts[turn.source].cursor
            for c in range(max(cursor, self._reached[turn.source]), cursor + self.ahead):
                self.begin(self.turns.of_cursor(turn.source, c))
            self._reached[turn.source] = cursor + self.ahead
        return self.read(turn)

    def begin(self, turn: MixtureDraw) -> None:
        key = turn.source, turn.place
        if self._pool and key not in self._begun:
            self._begun[key] = self._pool.submit(self._decoded, turn.index)

    def read(self, turn: MixtureDraw) -> Sample:
        """The sample of a turn, begun or not. Raises DataError."""
        begun = self._begun.pop((turn.source, turn.place), None)
        return begun.result() if begun else self.samples[turn.index]

    def _decoded(self, index: int) -> Sample:
        return self.samples[index].map_parts(_decoded)


def spare_threads() -> int:
    """Cores that computing leaves free: none on a CPU; beside a GPU this rank's part of them."""
    if not torch.cuda.is_available():
        return 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun
    return max(1, min(MOST, (os.cpu_count() or 1) // ranks - 1))


def _decoded(part: Part) -> Part:
    if not isinstance(part, Image) or isinstance(part.source, PIL.Image.Image):
        return part
    try:
        return Decoded(part.source, part.where, part.load())
    except DataError:  # told when somebody looks at it, as without threads
        return part
