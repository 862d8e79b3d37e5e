"""Edit distance and what is made of it: ANLS, character and word error rates."""

from __future__ import annotations

from collections.abc import Sequence


def levenshtein(a: Sequence, b: Sequence) -> int:
    """Insertions, deletions and substitutions between two strings or lists of words.

    A column of the table at a time as the bits of two integers (Myers 1999 in Hyyrö's form, 2003):
    a page of 2,000 characters against another takes milliseconds.
    """
    if not a or not b:
        return len(a) + len(b)
    where: dict = {}
    for i, item in enumerate(a):
        where[item] = where.get(item, 0) | 1 << i
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = full, 0, len(a)  # rows where the column rises, where it falls
    for item in b:
        match = where.get(item, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        rises, falls = down | ~(diagonal | up) & full, up & diagonal
        distance += bool(rises & last) - bool(falls & last)
        rises, falls = (rises << 1 | 1) & full, (falls << 1) & full
        up, down = falls | ~(diagonal | rises) & full, rises & diagonal
    return distance


def anls(reply: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """1 - the least (edit distance / longer length) over the answers, 0 below the threshold
    (1907.00490, section 5.1); case and repeated spaces do not count. Raises ValueError without
    answers.
    """
    if not answers:
        raise ValueError("anls without answers")
    said = _plain(reply)
    found = []
    for answer in answers:
        wanted = _plain(answer)
        longer = max(len(wanted), len(said))
        found.append(1 - levenshtein(wanted, said) / longer if longer else 1.0)
    return max(found) if max(found) >= threshold else 0.0


def character_error_rate(replies: Sequence[str], references: Sequence[str]) -> float:
    """Edits over all reference characters, both summed over the pairs; may exceed 1. Runs of white
    space count as one blank. Raises ValueError for unequal counts or empty references."""
    return _rate([_spaced(r) for r in replies], [_spaced(r) for r in references])


def word_error_rate(replies: Sequence[str], references: Sequence[str]) -> float:
    """As character_error_rate, of words between white space."""
    return _rate([r.split() for r in replies], [r.split() for r in references])


def _rate(replies: Sequence[Sequence], references: Sequence[Sequence]) -> float:
    total = sum(map(len, references))
    if len(replies) != len(references) or not total:
        raise ValueError(
            f"an error rate of {len(replies)} replies and {len(references)} references of length "
            f"{total}; it wants as many of each, and a reference to divide by"
        )
    return sum(levenshtein(a, b) for a, b in zip(replies, references, strict=True)) / total


def _plain(text: str) -> str:
    return _spaced(text.lower())


def _spaced(text: str) -> str:
    return " ".join(text.split())
