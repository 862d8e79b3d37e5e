"""A file of questions, through the reader that training uses, with one line that says which column
is what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chiasm.core.errors import ConfigError
from chiasm.core.sample import Message, Sample, Text
from chiasm.data.formats.normal import COLUMNS
from chiasm.data.formats.reading import Reading
from chiasm.data.load import open_data


def read_table(file: Path, columns: str = "", reading: Reading | None = None) -> list[Sample]:
    """All samples of a file in any known format.

    columns: "question=q, answer=gold, image=file" names the columns that are called otherwise than
    usual (COLUMNS). Raises DataError naming file and row, ConfigError for a column that is not
    there, and where no record has an answer.
    """
    reading = replace(reading or Reading(), columns=columns_of(columns))
    sources = open_data(str(file), reading=reading)
    samples = [sample for source in sources.values() for sample in source.samples]
    if samples and not any(sample.turns[-1].role == "assistant" for sample in samples):
        raise ConfigError(
            f"{file}: no record has an answer; name its column with --columns answer=NAME"
        )
    return samples


def columns_of(text: str) -> dict[str, str]:
    """what -> column, of "question=q answer=gold". Raises ConfigError."""
    chosen = {}
    for entry in filter(None, (part.strip() for part in text.replace(",", " ").split())):
        what, equals, name = entry.partition("=")
        if not equals or what not in COLUMNS:
            raise ConfigError(
                f"--columns {entry}: write WHAT=COLUMN with one of {', '.join(COLUMNS)}"
            )
        chosen[what] = name
    return chosen


def prompted(sample: Sample, prompt: str) -> Sample:
    """The sample with `prompt` in a line of its own after each question; with {question} in it,
    the prompt in place of the question's text."""
    if not prompt:
        return sample

    def turn(one: Message) -> Message:
        if one.role != "user":
            return one
        if "{question}" not in prompt:
            return one.replace(content=(*one.content, Text(f"\n{prompt}")))
        media = tuple(part for part in one.content if not isinstance(part, Text))
        return one.replace(content=(*media, Text(prompt.replace("{question}", one.text))))

    return sample.replace(turns=tuple(map(turn, sample.turns)))
