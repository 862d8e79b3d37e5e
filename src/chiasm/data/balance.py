"""Which answers the words of a question alone would not have guessed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from chiasm.core.sample import Sample, split_independent

Weight = Callable[[str, str], float]


def answer_rarity(samples: Iterable[Sample]) -> Weight:
    """weight(question, answer): how much rarer the answer is to that question than it would be if
    all answers given to it were equally frequent. Sampling by it balances the answers of every
    question ("Making the V in VQA matter", 1612.00837, section 3, by choice instead of collection).
    1 where a question was asked with one answer only, as in free conversations.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        if sample.independent:
            for part in split_independent(sample):
                counts[part.turns[-2].text][part.turns[-1].text] += 1

    def weight(question: str, answer: str) -> float:
        known = counts.get(question)
        if not known or not known[answer]:
            return 1.0
        return known.total() / (len(known) * known[answer])

    return weight
