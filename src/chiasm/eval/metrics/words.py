"""Captions as tokens, and the counts of their n-grams."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

# Words with inner hyphens, numbers with inner marks; clitics apart as in the Penn Treebank.
_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|d|ll|m)\b|\d+(?:[.,:/]\d+)*|\w+?(?=n't\b)|\w+(?:-\w+)*")


def caption_tokens(text: str) -> list[str]:
    """Lower case without punctuation, "the dog's" as "the dog 's", "don't" as "do n't": what the
    captioning evaluations get from the Penn Treebank tokenizer, without its Java."""
    return _TOKEN.findall(text.lower().replace("’", "'"))


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n tokens occurs."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
