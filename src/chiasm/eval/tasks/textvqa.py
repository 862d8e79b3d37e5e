"""TextVQA (1904.08920): reading scene text, ten answers each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.eval.tasks.definition import SHORT, Definition, asked
from chiasm.eval.tasks.rows import hub_rows, one, read_image, read_rows


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: val or train; the images of both lie in train_images/."""
    rows = hub_rows(folder, "validation" if split == "val" else split)
    if rows is None:
        rows = [
            {**row, "image": f"train_images/{row['image_id']}.jpg"}
            for row in read_rows(one(folder, f"**/TextVQA_0.5.1_{split}.json"))
        ]
    for row in rows:
        where = f"TextVQA question {row['question_id']}"
        commonest = Counter(row["answers"]).most_common(1)[0][0]
        yield asked(
            row["question_id"],
            row["question"] + SHORT,
            [read_image(row["image"], folder, where)],
            commonest,
            where,
            answers=list(row["answers"]),
        )


DEFINITION = Definition(
    "vqa", read, "val", "TextVQA_0.5.1_val.json, train_images/", "lmms-lab/textvqa"
)
