"""POPE (2305.10355): is there a thing that is not there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample
from chiasm.eval.tasks.definition import SHORT, Definition, asked
from chiasm.eval.tasks.rows import hub_rows, read_image, read_rows


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: test. Category: random, popular or adversarial. The published files are one JSON
    object a line although they end in .json."""
    rows = hub_rows(folder, split)
    if rows is not None:
        for row in rows:
            where = f"POPE {row['category']} {row['question_id']}"
            image = read_image(row["image"], folder, where)
            yield _sample(row, row["question"], row["answer"], row["category"], image, where)
        return
    files = sorted(folder.glob("**/coco_pope_*.json"))
    if not files:
        raise DataError(f"{folder}: holds no coco_pope_random.json or its like")
    for file in files:
        category = file.stem.removeprefix("coco_pope_")
        for row in read_rows(file):
            where = f"{file.name} question {row['question_id']}"
            image = Image(folder / "val2014" / row["image"], where)
            yield _sample(row, row["text"], row["label"], category, image, where)


def _sample(row: dict, words: str, label: str, category: str, image: Image, where: str) -> Sample:
    name = f"{category}-{row['question_id']}"
    return asked(name, words + SHORT, [image], label.lower().strip(), where, category=category)


DEFINITION = Definition(
    "yes-no", read, "test", "coco_pope_{random,popular,adversarial}.json, val2014/", "lmms-lab/POPE"
)
