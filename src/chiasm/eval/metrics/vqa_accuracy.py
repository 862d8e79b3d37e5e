"""VQA accuracy as the benchmark's own evaluation computes it (visualqa.org/evaluation)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from chiasm.eval.metrics.vqa import ARTICLES, NUMBERS

# Its contractions, each given once; the benchmark's table maps every spelling that lacks one
# apostrophe. "wed", "shed", "hell", "ill", "id" and the like are words and stay.
_WHOLE = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am "
    "mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't shan't "
    "she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd "
    "someone'd've someone'll someone's something'd something'd've something'll that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd "
    "who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all "
    "y'all'll y'all'd've 'ow's'at you'd you'd've you'll you're you've "
)


def _without_one(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# The last entry stands the other way round in the benchmark's table, and so it does here.
CONTRACTIONS = {short: word for word in _WHOLE.split() for short in _without_one(word)} | {
    "somebody'd": "somebodyd"
}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,+\d")


def normalise(text: str) -> str:
    """Punctuation, number words, articles and contractions as the benchmark treats them: a mark is
    deleted where a space stands beside it (or where the text holds a number with a comma), else it
    becomes a space; "%" stays."""
    return _words(_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def vqa_accuracy(reply: str, answers: Sequence[str]) -> float:
    """Mean over the annotators, each left out in turn, of min(1, others who say so / 3).

    answers: ten in VQAv2 and TextVQA; a single one is an exact match. Raises ValueError without
    answers.
    """
    if not answers:
        raise ValueError("vqa_accuracy without answers")
    answers, reply = [normalise(answer) for answer in answers], normalise(reply)
    return float(reply == answers[0]) if len(answers) == 1 else agreement(reply, answers)


def agreement(reply: str, answers: Sequence[str]) -> float:
    """The mean of it over texts that are normalised already; of a single answer always 0, as
    nobody else is left."""
    n, m = len(answers), Counter(answers)[reply]
    # An annotator who says the same sees m - 1 others who do, the rest see m.
    return (m * min(1.0, (m - 1) / 3) + (n - m) * min(1.0, m / 3)) / n


def _punctuation(text: str) -> str:
    number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or number else " ")
    return _PERIOD.sub("", out)


def _words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
