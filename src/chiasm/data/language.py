"""The language of a text by py3langid where it is installed, else its script."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

SHORTEST = 20  # letters: of fewer, a script is all that can honestly be said
LONGEST = 2000  # characters that are looked at
NONE = "no words"
SCRIPTS = {"CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"}


def language(text: str) -> str:
    """An ISO 639-1 code; for short texts, or without the extra `language`, "Latin script"."""
    text = text[:LONGEST]
    found = script(text)
    if found == NONE or sum(map(str.isalpha, text)) < SHORTEST:
        return found
    identifier = _identifier()
    return found if identifier is None else str(identifier(text)[0])


def script(text: str) -> str:
    """The script of most letters, by their Unicode names."""
    counts: Counter[str] = Counter()
    for letter in text:
        if letter.isalpha():
            name = unicodedata.name(letter, "unknown").partition(" ")[0]
            counts[SCRIPTS.get(name, name.capitalize())] += 1
    return f"{counts.most_common(1)[0][0]} script" if counts else NONE


@lru_cache(maxsize=1)
def _identifier():
    try:
        from py3langid import classify
    except ImportError:
        return None
    return classify
