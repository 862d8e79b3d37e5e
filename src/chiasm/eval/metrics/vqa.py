"""Comparing a reply with a reference the way the VQA metric does, with its known defects mended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(n) for n, word in enumerate(_WORDS)}}

_APOSTROPHES = re.compile(r"['’`´]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PERIOD = re.compile(r"\.(?!\d)")
_HYPHEN = re.compile(r"(?<=\S)-|-(?!\.?\d)")
_BREAKS = re.compile(r"[;:/\[\]\"“”{}()=+\\_<>@,?!*|%]")


def fold(text: str) -> str:
    """Text reduced to what is compared: lower case, no punctuation, no articles, single spaces.

    As the VQA metric: number words up to ten become digits, articles go, and dropping apostrophes
    joins contractions ("don't", "dont"). Beyond it, because graders that do not are known to count
    right answers wrong: "12%" is "12", "1,200" is "1200", "**Yes.**" is "yes"; and a minus before
    a number stays, because -5 is not 5. A text of articles alone is kept ("A" as a choice).
    """
    text = _APOSTROPHES.sub("", text.lower().replace("−", "-"))
    text = _PERIOD.sub("", _THOUSANDS.sub("", text))
    text = _HYPHEN.sub(" ", _BREAKS.sub(" ", text))
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join([word for word in words if word not in ARTICLES] or words)


def exact_match(reply: str, reference: str) -> bool:
    """Whether the two are the same after folding. An empty reply matches nothing."""
    return fold(reply) == fold(reference) != ""


def match_closed(reply: str, answers: Sequence[str]) -> str | None:
    """Which of a closed set of answers a reply gives, or None: a parse failure, never a guess.

    The reply is an answer (after folding), or exactly one answer occurs in it as whole words; a
    longer answer hides a shorter one inside it ("half circle", "circle"). Raises ValueError when
    two answers fold alike or one folds to nothing.
    """
    by_fold, pattern = _closed(tuple(answers))
    folded = fold(reply)
    if folded in by_fold:
        return by_fold[folded]
    found = set(pattern.findall(folded))
    return by_fold[found.pop()] if len(found) == 1 else None


@lru_cache(maxsize=32)
def _closed(answers: tuple[str, ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    by_fold = {fold(answer): answer for answer in answers}
    if len(by_fold) < len(answers) or "" in by_fold:
        raise ValueError(f"answers that cannot be told apart after folding: {', '.join(answers)}")
    longest_first = sorted(by_fold, key=len, reverse=True)
    choices = "|".join(map(re.escape, longest_first))
    return by_fold, re.compile(rf"(?<!\S)(?:{choices})(?!\S)")
