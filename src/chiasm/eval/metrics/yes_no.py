"""POPE: does a model see what is not there? (2305.10355)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from chiasm.eval.metrics.vqa import fold, match_closed

YesNo = Literal["yes", "no"]


class Pope(NamedTuple):
    """ "yes" is the positive class. yes_ratio: replies that say yes over all replies, 0.5 for a
    model without bias on balanced questions. parse_failures: replies that say neither."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    parse_failures: int


def parse_yes_no(reply: str) -> str | None:
    """What a reply says: its first word, else the only one of the two that occurs in it."""
    words = fold(reply).split()
    return words[0] if words[:1] in (["yes"], ["no"]) else match_closed(reply, ("yes", "no"))


def pope(replies: Sequence[str], answers: Sequence[YesNo]) -> Pope:
    """The five numbers of the benchmark. An unreadable reply is wrong whatever was asked, so it
    lowers the recall. Raises ValueError for unequal or no counts."""
    said = [parse_yes_no(reply) for reply in replies]
    return counted(said, answers, answers.count("yes"), said.count("yes"))


def counted(said: Sequence[str | None], answers: Sequence[YesNo], positives: int, yes: int) -> Pope:
    """Pope of what replies say. positives: what the recall is of; yes: what the ratio counts.
    Raises ValueError for unequal or no counts."""
    if len(said) != len(answers) or not said:
        raise ValueError(f"pope of {len(said)} replies and {len(answers)} answers")
    pairs = list(zip(said, answers, strict=True))
    hits = pairs.count(("yes", "yes"))
    false_alarms = pairs.count(("yes", "no"))
    precision = hits / (hits + false_alarms) if hits else 0.0
    recall = hits / positives if hits else 0.0
    return Pope(
        accuracy=sum(a == b for a, b in pairs) / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        yes_ratio=yes / len(pairs),
        parse_failures=list(said).count(None),
    )
