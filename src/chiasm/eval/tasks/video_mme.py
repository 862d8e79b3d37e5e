"""Video-MME (2405.21075): multiple choice about videos of three lengths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample, Video
from chiasm.eval.tasks.definition import LETTER, Definition, asked
from chiasm.eval.tasks.rows import hub_rows


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: test, without subtitles. Category: short, medium or long. The clips lie in data/, as
    the published archives unpack."""
    rows = hub_rows(folder, split)
    if rows is None:
        raise DataError(f"{folder}: holds no videomme/{split}-*.parquet")
    for row in rows:
        where = f"Video-MME {row['question_id']}"
        # Options come with their letters: "A. Apples."
        options = {o[0]: re.sub(r"^[A-D]\.\s*", "", o).strip() for o in row["options"]}
        words = "\n".join([row["question"], *row["options"]]) + LETTER
        yield asked(
            row["question_id"],
            words,
            [Video(folder / "data" / f"{row['videoID']}.mp4", where)],
            row["answer"],
            where,
            options=options,
            category=row["duration"],
        )


DEFINITION = Definition(
    "choice", read, "test", "videomme/test-*.parquet, data/VIDEO.mp4", "lmms-lab/Video-MME"
)
