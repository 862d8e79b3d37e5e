"""POPE: does a model see what is not there? (2305.10355)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from chiasm.eval.metrics.compat import Compat
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


def pope(replies: Sequence[str], answers: Sequence[YesNo], compat: Compat = None) -> Pope:
    """The five numbers of the benchmark. An unreadable reply is wrong whatever was asked, so it
    lowers the recall.

    compat "lmms-eval": only the bare word counts ("Yes." is wrong), unreadable replies are left
    out of the recall, and yes_ratio is that of the gold answers. Raises ValueError for unequal or
    no counts.
    """
    if len(replies) != len(answers) or not replies:
        raise ValueError(f"pope of {len(replies)} replies and {len(answers)} answers")
    theirs = compat == "lmms-eval"
    said = [_bare(r) if theirs else parse_yes_no(r) for r in replies]
    pairs = list(zip(said, answers, strict=True))
    hits = pairs.count(("yes", "yes"))
    false_alarms = pairs.count(("yes", "no"))
    asked = hits + pairs.count(("no", "yes")) if theirs else answers.count("yes")
    precision = hits / (hits + false_alarms) if hits else 0.0
    recall = hits / asked if hits else 0.0
    return Pope(
        accuracy=sum(a == b for a, b in pairs) / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        yes_ratio=(answers if theirs else said).count("yes") / len(pairs),
        parse_failures=said.count(None),
    )


def _bare(reply: str) -> str | None:
    reply = reply.lower().strip()
    return reply if reply in ("yes", "no") else None
