"""MMStar (2403.20330): multiple choice that cannot be answered without the image."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.eval.tasks.definition import LETTER, Definition, asked
from chiasm.eval.tasks.rows import one, read_image, read_rows

_OPTION = re.compile(r"([A-D]): (.*?)(?=,\s*[A-D]: |$)", re.S)


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: val, the only one. The options stand in the question, after "Options:"."""
    for row in read_rows(one(folder, "**/mmstar.parquet", "**/MMStar.tsv")):
        where = f"MMStar {row['index']}"
        options = {key: row[key] for key in "ABCD" if row.get(key)} or options_in(row["question"])
        words = row["question"]
        if "Options:" not in words:
            words += "\n" + "\n".join(f"{key}. {text}" for key, text in options.items())
        yield asked(
            row["index"],
            words + LETTER,
            [read_image(row["image"], folder, where)],
            row["answer"].strip(),
            where,
            options=options,
            category=row["category"],
        )


def options_in(words: str) -> dict[str, str]:
    """ "Which? Options: A: red, B: blue" -> {"A": "red", "B": "blue"}."""
    return {key: text.strip() for key, text in _OPTION.findall(words.rpartition("Options:")[2])}


DEFINITION = Definition(
    "choice", read, "val", "mmstar.parquet (or VLMEvalKit's MMStar.tsv)", "Lin-Chen/MMStar"
)
