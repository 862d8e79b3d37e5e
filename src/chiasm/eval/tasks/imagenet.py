"""ImageNet's validation images by class name (ILSVRC 2012, 1409.0575)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from chiasm.core.sample import Image, Sample
from chiasm.eval.tasks.definition import SHORT, Definition, asked
from chiasm.eval.tasks.rows import hub_rows, one, read_image

WORDS = "What is the main object in this picture?"
IMAGES = ("*.JPEG", "*.jpg", "*.png")


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: val. Images in val/WNID/, or all in val/ with LOC_val_solution.csv. A class is known
    by its first name; the others are answers too."""
    mapping = one(folder, "**/LOC_synset_mapping.txt")
    lines = [line.split(" ", 1) for line in mapping.read_text().splitlines() if line.strip()]
    names = {wnid: [name.strip() for name in text.split(",")] for wnid, text in lines}
    for image, wnid, where in _images(folder, split, list(names)):
        first, *_ = names[wnid]
        yield asked(
            where,
            WORDS + SHORT,
            [image],
            first,
            where,
            answers=names[wnid],
            label=list(names).index(wnid),
            category=wnid,
        )


def _images(folder: Path, split: str, wnids: list[str]) -> Iterator[tuple[Image, str, str]]:
    rows = hub_rows(folder, "validation" if split == "val" else split)
    if rows is not None:
        for number, row in enumerate(rows):
            where = f"ImageNet row {number}"
            yield read_image(row["image"], folder, where), wnids[row["label"]], where
        return
    solution = folder / "LOC_val_solution.csv"
    if solution.exists():
        with solution.open(newline="") as lines:
            for row in csv.DictReader(lines):
                file = folder / split / f"{row['ImageId']}.JPEG"
                yield Image(file, file.name), row["PredictionString"].split()[0], file.name
        return
    for wnid in wnids:
        for file in sorted(f for kind in IMAGES for f in (folder / split / wnid).glob(kind)):
            yield Image(file, file.name), wnid, f"{wnid}/{file.name}"


DEFINITION = Definition(
    "exact",
    read,
    "val",
    "LOC_synset_mapping.txt, val/WNID/*.JPEG (or LOC_val_solution.csv)",
    "ILSVRC/imagenet-1k",
)
