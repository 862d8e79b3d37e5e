"""ChartQA (2203.10244): questions about charts, written by people and by a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Image, Sample
from chiasm.eval.tasks.definition import SHORT, Definition, asked
from chiasm.eval.tasks.rows import hub_rows, one, read_image, read_rows

KINDS = ("human", "augmented")


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: test, val or train. Category: human or augmented."""
    rows = hub_rows(folder, split)
    if rows is not None:
        for number, row in enumerate(rows):
            where = f"ChartQA row {number}"
            kind = row["type"].removesuffix("_test")
            image = read_image(row["image"], folder, where)
            yield _sample(number, row["question"], row["answer"], kind, image, where)
        return
    for kind in KINDS:
        file = one(folder, f"**/{split}/{split}_{kind}.json")
        for number, row in enumerate(read_rows(file)):
            where = f"{file.name} entry {number}"
            image = Image(file.parent / "png" / row["imgname"], where)
            yield _sample(f"{kind}-{number}", row["query"], row["label"], kind, image, where)


def _sample(name: object, words: str, label: str, kind: str, image: Image, where: str) -> Sample:
    return asked(name, words + SHORT, [image], str(label), where, category=kind)


DEFINITION = Definition(
    "relaxed",
    read,
    "test",
    "test/test_human.json, test/test_augmented.json, test/png/",
    "lmms-lab/ChartQA",
)
