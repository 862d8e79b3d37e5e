"""What a benchmark's file says about it, and the words its questions end with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from chiasm.core.sample import Image, Sample, Video, assistant, user

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
"""LLaVA's words (2310.03744, table 7), which models of its kind were trained on."""


@dataclass(frozen=True)
class Definition:
    """A benchmark as it is published.

    metric: of scoring.py. read: folder and split -> samples; raises DataError naming the file it
    misses. split: the one that has answers. layout: the files in one line. hub: the data set of the
    Hugging Face hub that `read` understands too, "" where there is none.
    """

    metric: str
    read: Callable[[Path, str], Iterable[Sample]]
    split: str
    layout: str
    hub: str = ""


def asked(
    name: Any,
    words: str,
    media: Sequence[Image | Video],
    reference: str,
    where: str,
    **meta: Any,
) -> Sample:
    """One question with its answer. meta: "answers", "options", "category", "box" and what else
    its metric reads; None is left out."""
    turns = (user(*media, words), assistant(reference))
    kept = {key: value for key, value in meta.items() if value is not None}
    return Sample(turns, str(name), meta={**kept, "where": where})


def lettered(options: Sequence[str]) -> dict[str, str]:
    """A -> first option, B -> second, ..."""
    return {ascii_uppercase[i]: str(option) for i, option in enumerate(options)}


def with_options(words: str, options: Mapping[str, str]) -> str:
    """The question, an option a line, and what to answer with."""
    lines = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return f"{words}\n{lines}{LETTER}"
