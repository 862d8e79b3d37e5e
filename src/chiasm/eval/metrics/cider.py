"""CIDEr-D (1411.5726, section 3.4)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from chiasm.eval.metrics.words import caption_tokens, ngrams

ORDERS = range(1, 5)
SIGMA = 6.0
Vector = dict[tuple[str, ...], float]


def cider(replies: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """One score a reply, about 0 to 10 (benchmarks print the mean times 100):
    10/m Σ_refs exp(-(length difference)² / 2σ²) · clipped tf-idf cosine, mean of n = 1 .. 4.

    An n-gram's document frequency is the number of images whose references have it, so a score
    depends on the whole set: a single image scores 0, and sets of other sizes do not compare.
    Raises ValueError for unequal or no counts.
    """
    if len(replies) != len(references) or not replies or not all(references):
        raise ValueError(
            f"cider of {len(replies)} replies and {len(references)} sets of references"
        )
    tokens = [[caption_tokens(ref) for ref in refs] for refs in references]
    by_order = [_order(replies, tokens, n) for n in ORDERS]
    return [_mean(scores) for scores in zip(*by_order, strict=True)]


def _order(replies: Sequence[str], tokens: Sequence[Sequence[list[str]]], n: int) -> list[float]:
    """The scores of one n."""
    counts = [[ngrams(ref, n) for ref in refs] for refs in tokens]
    seen: Counter = Counter()
    for refs in counts:
        seen.update(set().union(*refs))
    images = math.log(len(tokens))

    def vector(grams: Counter) -> Vector:
        return {g: c * (images - math.log(max(1, seen[g]))) for g, c in grams.items()}

    scores = []
    for reply, refs, words in zip(replies, counts, tokens, strict=True):
        said = caption_tokens(reply)
        mine = vector(ngrams(said, n))
        scores.append(
            10
            * _mean(
                [
                    _similarity(mine, vector(ref)) * _penalty(len(said), len(w))
                    for ref, w in zip(refs, words, strict=True)
                ]
            )
        )
    return scores


def _similarity(said: Vector, wanted: Vector) -> float:
    """Cosine with what is said clipped to what is wanted: repeating a word gains nothing."""
    norms = math.sqrt(sum(v * v for v in said.values()) * sum(v * v for v in wanted.values()))
    dot = sum(min(v, wanted[g]) * wanted[g] for g, v in said.items() if g in wanted)
    return dot / norms if norms else 0.0


def _penalty(said: int, wanted: int) -> float:
    # The reference implementation counts bigrams, of which a text of no or one word has none.
    difference = max(0, said - 1) - max(0, wanted - 1)
    return math.exp(-(difference**2) / (2 * SIGMA**2))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
