"""AI2D (1603.07396): multiple choice about science diagrams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Image, Sample
from chiasm.eval.tasks.definition import Definition, asked, lettered, with_options
from chiasm.eval.tasks.rows import hub_rows, maybe, read_image, read_json


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: test, the images of ai2d_test_ids.csv; all where that is missing."""
    rows = hub_rows(folder, split)
    if rows is not None:
        for number, row in enumerate(rows):
            where = f"AI2D row {number}"
            image = read_image(row["image"], folder, where)
            yield _sample(number, row["question"], row["options"], int(row["answer"]), image, where)
        return
    listed = maybe(folder, f"ai2d_{split}_ids.csv")
    wanted = set(listed.read_text().split()) if listed else None
    for file in sorted((folder / "questions").glob("*.json")):
        found = read_json(file)
        if wanted is not None and Path(found["imageName"]).stem not in wanted:
            continue
        for words, row in found["questions"].items():
            where = f"{file.name} question {row['questionId']}"
            image = Image(folder / "images" / found["imageName"], where)
            right = int(row["correctAnswer"])
            yield _sample(row["questionId"], words, row["answerTexts"], right, image, where)


def _sample(
    name: object, words: str, texts: list[str], right: int, image: Image, where: str
) -> Sample:
    options = lettered(texts)
    letter = list(options)[right]
    return asked(name, with_options(words, options), [image], letter, where, options=options)


DEFINITION = Definition(
    "choice", read, "test", "questions/*.json, images/, ai2d_test_ids.csv", "lmms-lab/ai2d"
)
