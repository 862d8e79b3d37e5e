"""VQAv2 (1612.00837): questions about COCO images, ten answers each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Image, Sample
from chiasm.eval.tasks.definition import SHORT, Definition, asked
from chiasm.eval.tasks.rows import hub_rows, one, read_image, read_json


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: val or train."""
    rows = hub_rows(folder, "validation" if split == "val" else split)
    if rows is not None:
        for row in rows:
            where = f"VQAv2 {row['question_id']}"
            yield _sample(row, row, read_image(row["image"], folder, where), where)
        return
    questions = one(folder, f"**/v2_OpenEnded_mscoco_{split}2014_questions.json")
    found = read_json(one(folder, f"**/v2_mscoco_{split}2014_annotations.json"))
    answers = {entry["question_id"]: entry for entry in found["annotations"]}
    for row in read_json(questions)["questions"]:
        name = f"{split}2014/COCO_{split}2014_{row['image_id']:012d}.jpg"
        where = f"{questions.name} question {row['question_id']}"
        yield _sample(row, answers[row["question_id"]], Image(folder / name, where), where)


def _sample(row: dict, answers: dict, image: Image, where: str) -> Sample:
    return asked(
        row["question_id"],
        row["question"] + SHORT,
        [image],
        answers["multiple_choice_answer"],
        where,
        answers=[entry["answer"] for entry in answers["answers"]],
        category=answers.get("answer_type"),
    )


DEFINITION = Definition(
    "vqa",
    read,
    "val",
    "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/",
    "lmms-lab/VQAv2",
)
