"""A made-up world of captions and images in which small models can be trained in seconds.

text      a chain over words: the next depends on the last two, by a fixed random table
image   a grid of codes: each is the code above plus the one on the left plus what its caption's
          word for that row says, with noise, modulo the number of codes

"image" learns the codes of captioned images, "mixed" those with their captions and as much plain
text. Everything can be learnt, nothing quite: the noise is the floor of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chiasm.core.batch import IGNORE, Batch, Encoded, pack
from chiasm.core.vocab import Vocabulary

Kind = Literal["text", "image", "mixed"]
SPECIAL, WORDS, CODES, SIDE, CAPTION = 5, 59, 64, 6, 10
VOCABULARY = Vocabulary(SPECIAL + WORDS, CODES, 0, 1, 2, 3, 4)
LENGTH = CAPTION + SIDE * SIDE + 4
"""Tokens of one document, of whichever kind."""


@dataclass
class ToyStream:
    """Endless batches of `rows` documents, a function of (seed, cursor)."""

    kind: Kind
    rows: int
    seed: int = 0
    cursor: int = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self._batch()
            self.cursor += 1  # before: whoever stops here has had this one
            yield batch

    def state_dict(self) -> dict:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: dict) -> None:
        self.cursor = state["cursor"]

    def split(self, data_shard: int, count: int) -> None:
        self.seed = self.seed * count + data_shard  # other documents, as many as anyone wants

    def _batch(self) -> Batch:
        random = np.random.default_rng((self.seed, self.cursor, 7))
        return pack([[self._document(random, number)] for number in range(self.rows)])

    def _document(self, random: np.random.Generator, number: int) -> Encoded:
        if self.kind == "text" or (self.kind == "mixed" and number % 2):
            words = _chain(random, LENGTH - 2)
            return _encoded([VOCABULARY.begin, *(words + SPECIAL), VOCABULARY.end])
        words = _chain(random, CAPTION)
        ids = [VOCABULARY.begin, *(words + SPECIAL), *_grid(random, words), VOCABULARY.end]
        return _encoded(ids, only_codes=self.kind == "image")


def _chain(random: np.random.Generator, length: int) -> np.ndarray:
    """[length] words; four may follow any two, the first of them most often."""
    words = random.integers(0, WORDS, 2).tolist()
    choices = random.choice(4, length, p=[0.6, 0.25, 0.1, 0.05])
    for place in range(2, length):
        words.append(int(FOLLOWERS[words[-2], words[-1], choices[place]]))
    return np.array(words[:length])


def _grid(random: np.random.Generator, words: np.ndarray) -> list[int]:
    codes = np.zeros((SIDE + 1, SIDE + 1), np.int64)
    noise = random.choice(3, (SIDE, SIDE), p=[0.8, 0.1, 0.1])
    for r in range(SIDE):
        for c in range(SIDE):
            ruled = codes[r, c + 1] + codes[r + 1, c] + words[r] + noise[r, c]
            codes[r + 1, c + 1] = ruled % CODES
    inner = codes[1:, 1:].reshape(-1) + VOCABULARY.first_code
    return [VOCABULARY.begin_image, *inner.tolist(), VOCABULARY.end_image]


def _encoded(ids: list[int], only_codes: bool = False) -> Encoded:
    array = np.array(ids, np.int64)
    targets = np.append(array[1:], IGNORE)
    if only_codes:
        targets[targets < VOCABULARY.first_code] = IGNORE
    place = np.arange(len(array))
    return Encoded(array, targets, place, np.zeros_like(place), place.copy())


FOLLOWERS = np.random.default_rng(0).integers(0, WORDS, (WORDS, WORDS, 4))
"""The table of the text: the same world for every seed."""
