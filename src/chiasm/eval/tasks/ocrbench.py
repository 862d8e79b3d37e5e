"""OCRBench (2305.07895): a thousand questions about text of five kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.eval.tasks.definition import Definition, asked
from chiasm.eval.tasks.rows import hub_rows, one, read_image, read_rows

FORMULAS = "HME100k"


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: test, the only one. Category: the kind of text. Handwritten formulas compare with
    their case and without white space, as in the benchmark's own script."""
    rows = hub_rows(folder, split)
    if rows is None:
        rows = [
            {**row, "image": f"OCRBench_Images/{row['image_path']}"}
            for row in read_rows(one(folder, "**/OCRBench.json"))
        ]
    for number, row in enumerate(rows):
        where = f"OCRBench {number}"
        answers = row["answers"] if "answers" in row else row["answer"]
        answers = [answers] if isinstance(answers, str) else [str(a) for a in answers]
        dataset = row.get("dataset_name", row.get("dataset"))
        yield asked(
            row.get("id", number),
            row["question"],
            [read_image(row["image"], folder, where)],
            answers[0],
            where,
            answers=answers,
            category=row.get("type", row.get("question_type")),
            verbatim=True if dataset == FORMULAS else None,
        )


DEFINITION = Definition(
    "contains", read, "test", "OCRBench.json, OCRBench_Images/", "echo840/OCRBench"
)
