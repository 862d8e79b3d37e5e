"""Relaxed accuracy: numbers within a tolerance, everything else as it is."""

from __future__ import annotations

import re
from typing import NamedTuple

from chiasm.eval.metrics.vqa import exact_match

_NUMBER = re.compile(
    r"(?P<sign>[-−+]?)\s*[$€£¥]?\s*(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
    r"(?P<power>[eE][-+]?\d+)?\s*(?P<percent>%|percent)?\.?"
)
YEARS = range(1700, 2101)


class Number(NamedTuple):
    """value as written (12 for "12%"), whether it is a percentage, whether it is a bare whole
    number of four digits in the range of years."""

    value: float
    percent: bool
    year: bool


def number(text: str) -> Number | None:
    """The number a text consists of, or None: "$1,200.50", "12 %", "-3", "1e6"."""
    found = _NUMBER.fullmatch(text.strip().strip("*"))
    if found is None:
        return None
    value = float(found["digits"].replace(",", "") + (found["power"] or ""))
    value = -value if found["sign"] in ("-", "−") else value
    bare = found["digits"].isdigit() and len(found["digits"]) == 4 and not found["percent"]
    return Number(value, bool(found["percent"]), bare and int(value) in YEARS)


def relaxed_match(reply: str, target: str, tolerance: float = 0.05) -> bool:
    """|reply - target| <= tolerance · |target| for numbers (2203.10244, section 5.1), else equal
    after folding.

    A target that is a year must be hit exactly: 5 % of 2010 is a century. "12%", "12" and "0.12"
    are the same.
    """
    said, wanted = number(reply), number(target)
    if said is None or wanted is None:
        return exact_match(reply, target)
    if wanted.year:
        return said.value == wanted.value
    values = {said.value}
    if said.percent != wanted.percent:  # one is written as a share, perhaps
        values.add(said.value / 100 if said.percent else said.value * 100)
    return any(abs(v - wanted.value) <= tolerance * abs(wanted.value) for v in values)
