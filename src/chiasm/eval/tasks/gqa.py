"""GQA (1902.09506): compositional questions with one answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Image, Sample
from chiasm.eval.tasks.definition import SHORT, Definition, asked
from chiasm.eval.tasks.rows import hub_rows, one, read_image, read_json


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: testdev or val, of the balanced questions."""
    rows = hub_rows(folder, split, f"{split}_balanced_instructions")
    if rows is not None:
        image_rows = hub_rows(folder, split, f"{split}_balanced_images") or []
        images = {
            row["id"]: read_image(row["image"], folder, f"GQA {row['id']}") for row in image_rows
        }
        for row in rows:
            yield _sample(row["id"], row, images[row["imageId"]], f"GQA {row['id']}")
        return
    file = one(folder, f"**/{split}_balanced_questions.json")
    for name, row in read_json(file).items():
        where = f"{file.name} question {name}"
        yield _sample(name, row, Image(folder / "images" / f"{row['imageId']}.jpg", where), where)


def _sample(name: str, row: dict, image: Image, where: str) -> Sample:
    category = (row.get("types") or {}).get("structural")
    return asked(name, row["question"] + SHORT, [image], row["answer"], where, category=category)


DEFINITION = Definition(
    "exact", read, "testdev", "testdev_balanced_questions.json, images/", "lmms-lab/GQA"
)
