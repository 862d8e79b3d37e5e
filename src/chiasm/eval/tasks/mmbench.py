"""MMBench (2307.06281): multiple choice by ability."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.eval.tasks.definition import Definition, asked, with_options
from chiasm.eval.tasks.rows import hub_rows, one, read_image, read_rows


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: dev. The published TSV has its images as base64; a row that repeats a question with
    its options turned around names the row that has the image."""
    rows = hub_rows(folder, split, "en")
    if rows is None:
        name = split.upper()
        file = one(folder, f"**/MMBench_{name}_EN*.tsv", f"**/mmbench_{split}_en*.tsv")
        rows = list(read_rows(file))
    by_index = {str(row["index"]): row["image"] for row in rows}
    for row in rows:
        where = f"MMBench {row['index']}"
        # Missing cells are "nan" where pandas wrote them.
        options = {key: row[key] for key in "ABCD" if row.get(key) not in (None, "", "nan")}
        hint = row.get("hint")
        words = f"{hint}\n{row['question']}" if hint and hint != "nan" else row["question"]
        image = row["image"]
        image = by_index.get(image, image) if isinstance(image, str) else image
        yield asked(
            row["index"],
            with_options(words, options),
            [read_image(image, folder, where)],
            row["answer"],
            where,
            options=options,
            category=row.get("l2-category") or row.get("L2-category") or row["category"],
        )


DEFINITION = Definition("choice", read, "dev", "MMBench_DEV_EN.tsv", "lmms-lab/MMBench")
