"""Control tokens that people only write about: `<|im_end|>` in a message is words, not an end.

A chat template puts words and control tokens into one text, and a tokenizer finds control tokens
anywhere in it. Before the template is rendered, each word of people's that looks like a control
token is exchanged for one character that occurs nowhere else. What the tokenizer finds afterwards
was written by the template. The stretches between its control tokens in which a character stands
for a word are then tokenized with the words, and without looking for control tokens in them.
Text without such words takes the usual way, in one call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from chiasm.core.errors import DataError

FIRST, LAST = 0xF0000, 0xFFFFD
"""Characters for private use (Unicode, plane 15): no text has a meaning for them."""

Encoding = tuple[list[int], list[tuple[int, int]]]
"""ids, and where each begins and ends in the text."""


class ControlTokens:
    """Of a transformers tokenizer: its special tokens but those in `allowed`, which people write
    and mean (model.extra_special_tokens)."""

    def __init__(self, tokenizer: Any, allowed: Collection[str] = ()):
        self.tokenizer, self.size = tokenizer, len(tokenizer)
        added = tokenizer.added_tokens_decoder
        self.added = frozenset(added)
        special = {i: t.content for i, t in added.items() if t.special}
        self.ids = frozenset(i for i, name in special.items() if name not in allowed)
        names = sorted((special[i] for i in self.ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def hide(self, texts: Iterable[str]) -> Hidden:
        """What stands for the words in `texts` that look like control tokens."""
        texts = list(texts)
        words = dict.fromkeys(word for text in texts for word in self._pattern.findall(text))
        if not words:
            return Hidden(self._pattern, {})
        used = set("".join(texts))
        free = (c for c in map(chr, range(FIRST, LAST + 1)) if c not in used)
        return Hidden(self._pattern, dict(zip(words, free, strict=False)))

    def join(self, before: str, behind: str) -> bool:
        """Whether a word that looks like a control token begins in one text and ends in the
        next."""
        border = len(before)
        found = self._pattern.finditer(before + behind)
        return any(match.start() < border < match.end() for match in found)

    def encode(self, text: str, hidden: Hidden, special: bool) -> Encoding:
        """special: with what the tokenizer puts before and behind a text. Raises DataError where a
        tokenizer has such a word as one token only, so that it cannot be written as words."""
        found = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids, offsets = found["input_ids"], [tuple(pair) for pair in found["offset_mapping"]]
        if not hidden.occurs_in(text):
            return ids, offsets
        made: Encoding = [], []
        start = first = 0  # of a stretch, in the text and among the ids
        for place, (begin, end) in enumerate([*offsets, (len(text), len(text))]):
            last = place == len(ids)
            if not last and ids[place] not in self.added:
                continue
            if begin == end and not last:  # put there by the tokenizer, not found in the text
                begin = end = 0 if place == 0 else len(text)
            stretch = text[start:begin]
            if hidden.occurs_in(stretch):
                parts = self._encode_words(stretch, start, hidden)
            else:
                parts = ids[first:place], offsets[first:place]
            made[0].extend(parts[0])
            made[1].extend(parts[1])
            if not last:
                made[0].append(ids[place])
                made[1].append((begin, end))
            start, first = end, place + 1
        return made

    def _encode_words(self, stretch: str, start: int, hidden: Hidden) -> Encoding:
        text, place = hidden.restore(stretch)
        found = (self._inside if start else self._opening).encode(text, add_special_tokens=False)
        if wrong := self.ids.intersection(found.ids):
            name = self.tokenizer.convert_ids_to_tokens(min(wrong))
            raise DataError(
                f"the text contains '{name}', which this tokenizer knows as a control token only"
            )
        return found.ids, [(start + place[a], start + place[b]) for a, b in found.offsets]

    @cached_property
    def _opening(self) -> Tokenizer:
        """For the beginning of a text: looks for the added tokens that people may write only."""
        return self._words_only(inside=False)

    @cached_property
    def _inside(self) -> Tokenizer:
        """As _opening, for what follows a control token: no space is put before its first word
        where the tokenizer puts one before the first word of a text only."""
        return self._words_only(inside=True)

    def _words_only(self, inside: bool) -> Tokenizer:
        told = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in told["added_tokens"]:
            token["special"] = token["id"] in self.ids
        step = told["pre_tokenizer"] or {}
        for part in step.get("pretokenizers", [step]):
            if inside and part.get("prepend_scheme") == "first":
                part["prepend_scheme"] = "never"
        made = Tokenizer.from_str(json.dumps(told | {"truncation": None, "padding": None}))
        made.encode_special_tokens = True
        return made


class Hidden:
    """Words and the characters that stand for them."""

    def __init__(self, pattern: re.Pattern, characters: dict[str, str]):
        self._pattern, self._characters = pattern, characters
        self._words = {character: word for word, character in characters.items()}

    def __call__(self, text: str) -> str:
        """The text with characters for the words."""
        if not self._characters:
            return text
        return self._pattern.sub(lambda match: self._characters[match[0]], text)

    def occurs_in(self, text: str) -> bool:
        return any(character in text for character in self._words)

    def restore(self, text: str) -> tuple[str, Sequence[int]]:
        """The text with the words again, and for every place in it and its end, the place in the
        text with characters."""
        parts, places = [], []
        for place, character in enumerate(text):
            word = self._words.get(character, character)
            parts.append(word)
            places += [place] * len(word)
        return "".join(parts), [*places, len(text)]
