"""GenEval's prompts (2310.11513): what a drawing must show, for metrics/agreement.py to check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.eval.tasks.definition import Definition, asked
from chiasm.eval.tasks.rows import one, read_rows


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: of no meaning here. The prompt is asked and its record kept in meta: "include",
    "exclude"; category: its tag (single_object, two_object, counting, colors, position, ...)."""
    file = one(folder, "**/evaluation_metadata.jsonl", "**/*.jsonl")
    for number, row in enumerate(read_rows(file)):
        yield asked(
            f"{number:05d}",
            row["prompt"],
            [],
            row["prompt"],
            f"{file.name}:{number + 1}",
            include=row["include"],
            exclude=row.get("exclude"),
            category=row["tag"],
        )


DEFINITION = Definition("drawing", read, "test", "evaluation_metadata.jsonl")
