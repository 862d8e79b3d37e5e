"""Which option of a multiple-choice question a reply takes."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from chiasm.eval.metrics.compat import Compat
from chiasm.eval.metrics.vqa import fold


def parse_choice(
    reply: str,
    options: Mapping[str, str],
    compat: Compat = None,
    guess: random.Random | None = None,
) -> str | None:
    """The letter a reply chooses, or None: a parse failure, never a guess.

    options: letter -> text. In this order: the reply is an option's text; it begins with a letter
    ("B", "B.", "(B) because"); "answer is B", the last one said; a letter in brackets, the last; a
    letter standing alone, the last, where "A dog" and "I think" are words; exactly one option's
    text occurs as whole words, a longer one hiding a shorter one inside it.

    compat "lmms-eval": MMMU's parser, for which "A dog" chooses A; where it finds nothing it
    draws a letter, here from `guess` (theirs is seeded by whatever ran before, so single draws
    cannot be repeated), or None without one.
    """
    if compat == "lmms-eval":
        found = _theirs(reply, options)
        return guess.choice(list(options)) if found is None and guess else found
    said = fold(reply)
    texts = {fold(text): letter for letter, text in options.items() if fold(text)}
    if said in texts and len(texts) == len(options):
        return texts[said]
    letters = "|".join(map(re.escape, options))
    for pattern, flags in (
        (rf"^\W*({letters})(?:$|[.):,*\]\n]|\s*$)", 0),
        (rf"(?:answer|choice|option)(?:\s+is)?\s*:?\s*\W{{0,3}}({letters})(?![\w'’])", re.I),
        (rf"\(({letters})\)", 0),
        (rf"(?<![\w'’])({letters})(?![\w'’])(?!(?<=[AI])\s+[a-z])", 0),
    ):
        found = re.findall(pattern, reply.strip(), flags)
        # Letters are capitals even where the words around them are not: "answer is a dog".
        found = [letter for letter in found if letter in options]
        if found:
            return found[-1]
    return _by_text(said, texts)


def _by_text(said: str, texts: Mapping[str, str]) -> str | None:
    if not texts:
        return None
    longest_first = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    found = set(re.findall(rf"(?<!\S)(?:{longest_first})(?!\S)", said))
    return texts[found.pop()] if len(found) == 1 else None


def _theirs(reply: str, options: Mapping[str, str]) -> str | None:
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    reply = f" {reply} "
    # Kind of mention -> what is looked for, and where the last one is found.
    for shown, placed in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if shown.format(letter) in reply]
        if found:
            return max(found, key=lambda letter: reply.rfind(placed.format(letter)))
    if len(reply.split()) > 5:
        lower = reply.lower()
        found = [letter for letter, text in options.items() if text.lower() in lower]
        if found:
            return max(found, key=lambda letter: lower.rfind(options[letter].lower()))
    return None
