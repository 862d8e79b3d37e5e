"""Answers and options of a record, in the ways in which they are published."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from chiasm.core.errors import DataError
from chiasm.data.formats import forms
from chiasm.data.formats.forms import Row
from chiasm.data.formats.media_value import spelt
from chiasm.data.formats.reading import Reading, encodable, show

MISSING = ("", "nan")
"""What pandas and spreadsheets write into cells that hold nothing."""
OPTION_COLUMNS = (
    tuple(ascii_uppercase),
    *(
        tuple(pattern.format(letter) for letter in letters)
        for pattern in ("choice_{}", "option_{}", "choice{}", "option{}")
        for letters in (ascii_uppercase, ascii_uppercase.lower(), "1234567890")
    ),
)
"""Columns that hold an option each, in order."""
TEXT_KEYS = ("answer", "text", "value", "sent", "raw", "caption", "label")
NO_OPTION = "(answers that are none of the options)"


@dataclass(frozen=True)
class Answer:
    """text: what is learnt; references: all that is right when it is scored; options: letter ->
    text, where text is one of the letters."""

    text: str
    references: tuple[str, ...] = ()
    options: Mapping[str, str] | None = None


def texts_of(value: Any, entry: str) -> list[str]:
    """One answer or several as strings: a string, a number, an object with the answer in it, or
    lists of them. Raises DataError for anything else."""
    if isinstance(value, Mapping):
        found = next((value[key] for key in TEXT_KEYS if value.get(key) is not None), None)
        if found is None:
            raise DataError(f"{entry} is {show(dict(value))}; give a string, or an object with "
                            f"one of {', '.join(TEXT_KEYS)}")  # fmt: skip
        return texts_of(found, entry)
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in texts_of(one, entry)]
    if isinstance(value, (int, float)):
        return [str(value)]
    return [encodable(value, entry)]


def options_of(row: Row) -> dict[str, str]:
    """letter -> text of a record's options; empty where it has none."""
    found = row.find(forms.OPTIONS)
    if found is not None:
        name, value = found
        return _given(spelt(value) if isinstance(value, str) else value, name, value)
    for columns in OPTION_COLUMNS:
        if columns[0] not in row.there or columns[1] not in row.there:
            continue
        texts = [row.values.get(column) for column in columns]
        if texts[0] in MISSING or texts[1] in MISSING:
            continue
        row.used.update(column for column in columns if column in row.values)
        return {
            ascii_uppercase[i]: str(text)
            for i, text in enumerate(texts)
            if text not in (None, *MISSING)
        }
    return {}


def _given(value: Any, name: str, found: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("text"), (list, tuple)):  # {"label": ["A", ...], "text": [...]}
            texts = [str(text) for text in value["text"]]
            labels = value.get("label") or ascii_uppercase
            return dict(zip(map(str, labels), texts, strict=False))
        return {str(k): str(v) for k, v in value.items() if v not in (None, *MISSING)}
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{name} is {show(found)}; make it a list or an object of options")
    if len(value) > len(ascii_uppercase):
        raise DataError(f"{name} has {len(value)} options; at most {len(ascii_uppercase)}")
    texts = [text for i, one in enumerate(value) for text in texts_of(one, f"{name}[{i}]")]
    bare = [re.sub(rf"^\(?{ascii_uppercase[i]}[).:]\s*", "", text) for i, text in enumerate(texts)]
    if all(short != text for short, text in zip(bare, texts, strict=True)):
        texts = bare
    return {ascii_uppercase[i]: text for i, text in enumerate(texts)}


def answer_of(row: Row, options: Mapping[str, str], reading: Reading) -> Answer | None:
    """A record's answer; None where it has none."""
    place = row.find(forms.PLACE_OF_ANSWER) if options else None
    found = place or row.find(forms.ANSWER)
    if found is None:
        return None
    name, value = found
    if value == "":
        return None
    if isinstance(value, str) and value.startswith("[") and isinstance(spelt(value), list):
        value = spelt(value)
    if isinstance(value, (list, tuple)) and not value:
        raise DataError(f'"{name}" is []; give an answer or remove the row')
    if options:
        for _ in row.every(forms.REFERENCES):  # of open questions; here the option is right
            pass
        letters = _letters(value, options)
        if letters is not None:
            return Answer(letters, options=options)
        reading.unused[NO_OPTION] += 1
    texts = texts_of(value, name)
    best = Counter(texts).most_common(1)[0][0]
    more = row.find(forms.REFERENCES)
    if more is not None and more[0] != name:
        value = spelt(more[1]) if isinstance(more[1], str) else None
        texts = texts_of(more[1] if value is None else value, more[0])
        texts = texts if best in texts else [best, *texts]
    return Answer(best, tuple(texts) if len(texts) > 1 else ())


def _letters(value: Any, options: Mapping[str, str]) -> str | None:
    """The letter of an answer that is a letter, a text or a place from 0; of several, all."""
    if isinstance(value, (list, tuple)):
        found = [_letters(one, options) for one in value]
        return None if None in found else ", ".join(filter(None, found))
    letters = list(options)
    if isinstance(value, int) and not isinstance(value, bool):
        return letters[value] if 0 <= value < len(letters) else None
    text = str(value).strip()
    bare = re.sub(r"^\((.*)\)$|^(.*)[).:]$", r"\1\2", text)
    for one in (text, text.upper(), bare, bare.upper()):
        if one in options:
            return one
    same = [k for k, option in options.items() if option.strip().casefold() == text.casefold()]
    if same:
        return same[0]
    if text.isdecimal() and int(text) < len(letters):
        return letters[int(text)]
    return None


def with_options(question: str, options: Mapping[str, str]) -> str:
    """The question with an option a line."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def pairs_of(value: Any, entry: str) -> Sequence[tuple[Any, Any]]:
    """Questions with their answers, of [[question, answer], ...]. Raises DataError."""
    if isinstance(value, str):
        value = spelt(value)
    if not isinstance(value, (list, tuple)):
        raise DataError(f'"{entry}" is {show(value)}; make it a list')
    for i, pair in enumerate(value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(f"{entry}[{i}] is not a question and its answer; make it a pair")
    return value
