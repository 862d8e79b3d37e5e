"""DocVQA (2007.00398): questions about scanned pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.eval.tasks.definition import SHORT, Definition, asked
from chiasm.eval.tasks.rows import hub_rows, one, read_image, read_rows


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: val or train; the test split is published without answers."""
    rows = hub_rows(folder, "validation" if split == "val" else split, "DocVQA")
    if rows is None:
        file = one(folder, f"**/{split}_v1.0_withQT.json", f"**/{split}_v1.0.json")
        rows, folder = list(read_rows(file)), file.parent
    for row in rows:
        where = f"DocVQA question {row['questionId']}"
        yield asked(
            row["questionId"],
            row["question"] + SHORT,
            [read_image(row["image"], folder, where)],
            row["answers"][0],
            where,
            answers=list(row["answers"]),
            category=next(iter(row.get("question_types") or []), None),
        )


DEFINITION = Definition("anls", read, "val", "val_v1.0_withQT.json, documents/", "lmms-lab/DocVQA")
