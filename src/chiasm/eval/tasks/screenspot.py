"""ScreenSpot (2401.10935): where to click for an instruction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample
from chiasm.eval.tasks.definition import Definition, asked
from chiasm.eval.tasks.rows import hub_rows, read_image, read_rows

WORDS = (
    'In this screenshot, where is the element for "{}"? '
    "Answer with its point as (x, y), each a fraction of the picture between 0 and 1."
)


def read(folder: Path, split: str) -> Iterator[Sample]:
    """split: test. The published boxes are left, top, width and height in pixels, the hub's left,
    top, right and bottom, as fractions or pixels. Category: the platform, with text or icon."""
    rows = hub_rows(folder, split)
    if rows is not None:
        for number, row in enumerate(rows):
            where = f"ScreenSpot row {number}"
            image, box = read_image(row["image"], folder, where), list(row["bbox"])
            if max(box) > 1:
                W, H = image.load().size
                box = [box[0] / W, box[1] / H, box[2] / W, box[3] / H]
            yield _sample(number, row, row["data_source"], box, image, where)
        return
    files = sorted(folder.glob("**/screenspot_*.json"))
    if not files:
        raise DataError(f"{folder}: holds no screenspot_web.json or its like")
    for file in files:
        platform = file.stem.removeprefix("screenspot_")
        for number, row in enumerate(read_rows(file)):
            where = f"{file.name} entry {number}"
            path = file.parent / "screenspot_imgs" / row["img_filename"]
            left, top, width, height = row["bbox"]
            W, H = _size(path, where)
            box = [left / W, top / H, (left + width) / W, (top + height) / H]
            yield _sample(f"{platform}-{number}", row, platform, box, Image(path, where), where)


def _sample(
    name: object, row: dict, platform: str, box: list[float], image: Image, where: str
) -> Sample:
    centre = f"({(box[0] + box[2]) / 2:.3f}, {(box[1] + box[3]) / 2:.3f})"
    category = f"{platform} {row['data_type']}"
    words = WORDS.format(row["instruction"])
    return asked(name, words, [image], centre, where, box=box, category=category)


def _size(path: Path, where: str) -> tuple[int, int]:
    try:
        with PIL.Image.open(path) as image:
            return image.size
    except OSError as error:
        raise DataError(f"{path}: {error} ({where}); its box is in pixels of it") from None


DEFINITION = Definition(
    "click",
    read,
    "test",
    "screenspot_{mobile,desktop,web}.json, screenspot_imgs/",
    "rootsautomation/ScreenSpot",
)
