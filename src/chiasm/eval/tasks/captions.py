"""COCO and Flickr30k captions: five references an image (1504.00325; aclanthology Q14-1006)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from chiasm.core.sample import Image, Sample
from chiasm.eval.tasks.definition import Definition, asked
from chiasm.eval.tasks.rows import hub_rows, maybe, one, read_image, read_json

WORDS = "Provide a one-sentence caption for the provided image."


def _read(kind: str, folder: Path, split: str) -> Iterator[Sample]:
    """From Karpathy's dataset_KIND.json, else COCO's captions_*.json, else the hub's parquet."""
    karpathy = maybe(folder, f"**/dataset_{kind}.json")
    if karpathy is not None:
        yield from _karpathy(karpathy, folder, split)
        return
    rows = hub_rows(folder, split)
    if rows is not None:
        for number, row in enumerate(rows):
            where = f"{kind} row {number}"
            image = read_image(row["image"], folder, where)
            yield _sample(
                number, image, row["caption"] if "caption" in row else row["answer"], where
            )
        return
    file = one(folder, "**/captions_val2017.json", "**/captions_val2014.json")
    found, by_image = read_json(file), defaultdict(list)
    for row in found["annotations"]:
        by_image[row["image_id"]].append(row["caption"])
    images = file.stem.removeprefix("captions_")
    for row in found["images"]:
        where = f"{file.name} image {row['id']}"
        image = Image(folder / images / row["file_name"], where)
        yield _sample(row["id"], image, by_image[row["id"]], where)


def _karpathy(file: Path, folder: Path, split: str) -> Iterator[Sample]:
    for row in read_json(file)["images"]:
        if row["split"] == split:
            where = f"{file.name} image {row['imgid']}"
            path = folder / row.get("filepath", "flickr30k-images") / row["filename"]
            captions = [sentence["raw"] for sentence in row["sentences"]]
            yield _sample(row["imgid"], Image(path, where), captions, where)


def _sample(name: object, image: Image, captions: list[str], where: str) -> Sample:
    captions = [" ".join(caption.split()) for caption in captions]
    return asked(name, WORDS, [image], captions[0], where, answers=captions, captions=captions)


COCO = Definition(
    "caption",
    partial(_read, "coco"),
    "test",
    "dataset_coco.json (Karpathy) with val2014/, or captions_val2017.json with val2017/",
    "lmms-lab/COCO-Caption",
)
FLICKR = Definition(
    "caption",
    partial(_read, "flickr30k"),
    "test",
    "dataset_flickr30k.json (Karpathy), flickr30k-images/",
    "lmms-lab/flickr30k",
)
