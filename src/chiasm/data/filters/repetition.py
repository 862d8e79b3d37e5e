"""Replies that go round in circles, the mark of a failed generation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from chiasm.core.sample import Sample


@dataclass
class Repetition:
    """most: the share of n-grams of words that stand in a reply more than once (Gopher's rule,
    Rae et al. 2021, Table A1, with one n); replies of fewer than 4 n words are not judged."""

    n: int = 3
    most: float = 0.3

    def reason(self, sample: Sample) -> str | None:
        for turn in sample.turns:
            words = turn.text.lower().split()
            if turn.role != "assistant" or len(words) < 4 * self.n:
                continue
            grams = Counter(zip(*(words[i:] for i in range(self.n)), strict=False))
            share = sum(c for c in grams.values() if c > 1) / grams.total()
            if share > self.most:
                return f"a reply of which {share:.0%} repeats itself, over {self.most:.0%}"
        return None
