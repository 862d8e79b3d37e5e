"""Replies that decline to answer: counted apart, as they are not wrong in the usual way."""

from __future__ import annotations

import re

# Only how a reply begins: "it is a red circle, sorry" answers.
_OPENING = re.compile(
    r"(?:i am|i'm) (?:very |so )?sorry\b|sorry,|my apologies\b|i apologi[sz]e\b"
    r"|(?:unfortunately,? |but |sorry,? )?i(?: am|'m)? ?"
    r"(?:cannot|can not|can't|could not|couldn't|won't|will not|unable to|not able to)\b"
    r"|as an ai\b|as a (?:large )?language model\b"
)


def is_refusal(reply: str) -> bool:
    """Whether a reply begins as those do that decline (English)."""
    words = " ".join(reply.lower().replace("\u2019", "'").split())
    return _OPENING.match(words) is not None
