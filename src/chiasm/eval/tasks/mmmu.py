"""MMMU (2311.16502): college questions of thirty subjects, up to seven images each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Message, Sample, Text, assistant
from chiasm.eval.tasks.definition import SHORT, Definition, lettered, with_options
from chiasm.eval.tasks.rows import hub_rows, read_image

_MARK = re.compile(r"<image (\d)>")


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: validation or dev. Category: the subject, which is the folder of its parquet file."""
    rows = hub_rows(folder, split)
    if rows is None:
        raise DataError(f"{folder}: holds no SUBJECT/{split}-*.parquet")
    for row in rows:
        yield _sample(row, folder)


def _sample(row: dict, folder: Path) -> Sample:
    where = f"MMMU {row['id']}"
    right = row["answer"]
    meta: dict = {"where": where, "category": re.sub(r"^[^_]+_|_\d+$", "", row["id"])}
    if row["question_type"] == "multiple-choice":
        # The column holds Python's spelling of the list.
        meta["options"] = lettered(ast.literal_eval(row["options"]))
        words, reference = with_options(row["question"], meta["options"]), right
    else:
        several = right.startswith("[") and right.endswith("]")
        meta["answers"] = [str(a) for a in (ast.literal_eval(right) if several else [right])]
        words, reference = row["question"] + SHORT, meta["answers"][0]
    pieces = _MARK.split(words)  # words and the numbers of images, by turns
    parts = [
        read_image(row[f"image_{piece}"], folder, where) if i % 2 else Text(piece)
        for i, piece in enumerate(pieces)
        if piece
    ]
    return Sample((Message("user", tuple(parts)), assistant(reference)), row["id"], meta=meta)


DEFINITION = Definition("choice", read, "validation", "SUBJECT/validation-*.parquet", "MMMU/MMMU")
