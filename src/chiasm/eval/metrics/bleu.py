"""BLEU (Papineni et al. 2002, aclanthology P02-1040)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from chiasm.eval.metrics.words import caption_tokens, ngrams


def bleu(replies: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> float:
    """Corpus BLEU in [0, 1]: the geometric mean of the clipped precisions of 1 .. order grams times
    exp(1 - r/c) where the replies (length c) are shorter than the references nearest in length (r,
    the shorter of two as near). Not smoothed: 0 where no n-gram of some order matches.

    references: several a reply. Raises ValueError for unequal or no counts.
    """
    if len(replies) != len(references) or not replies or not all(references):
        raise ValueError(f"bleu of {len(replies)} replies and {len(references)} sets of references")
    matched, offered = [0] * order, [0] * order
    said_length = wanted_length = 0
    for reply, refs in zip(replies, references, strict=True):
        said, wanted = caption_tokens(reply), [caption_tokens(ref) for ref in refs]
        said_length += len(said)
        wanted_length += min((abs(len(w) - len(said)), len(w)) for w in wanted)[1]
        for n in range(1, order + 1):
            counts, most = ngrams(said, n), Counter()
            for w in wanted:
                most |= ngrams(w, n)
            matched[n - 1] += (counts & most).total()
            offered[n - 1] += counts.total()
    if not all(matched):
        return 0.0
    logs = [math.log(m / o) for m, o in zip(matched, offered, strict=True)]
    brevity = min(0.0, 1 - wanted_length / said_length)
    return math.exp(sum(logs) / order + brevity)
