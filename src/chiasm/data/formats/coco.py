"""COCO's files: {"images": [{"id", "file_name"}], "annotations": [{"image_id", ...}]}.

An annotation has a caption, or a box of a category ([left, top, width, height] in pixels); an image
that has a caption itself (MDETR's RefCOCO) has the box that its caption refers to.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats.format import ImageDatasetFormat, Look
from chiasm.data.formats.grounding import corners_of
from chiasm.data.formats.reading import Reading, Record, folder_name, samples, show, typed
from chiasm.data.formats.rows import sample_of

CROWDS = "(crowd regions)"


def claims(look: Look) -> bool:
    """One object with both lists: judged by the head of the file, which may be large."""
    if look.file is None or look.file.suffix != ".json" or not look.file.is_file():
        return False
    with look.file.open("rb") as stream:
        head = stream.read(2**16).lstrip()
        stream.seek(max(0, look.file.stat().st_size - 2**20))
        tail = stream.read()
    names = (b'"file_name"', b'"image_id"')
    return head.startswith(b"{") and all(name in head or name in tail for name in names)


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    file = Look(path).file or path
    root, source = reading.root(file.parent), folder_name(file)
    try:
        whole = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON: {error}; correct the file") from None
    if not isinstance(whole, dict):
        raise DataError(f"{file}: {show(whole)} is no COCO file; give one with images")
    notes = defaultdict(list)
    for _, note in _objects(whole, "annotations", file):
        if isinstance(note, dict):
            notes[show(note.get("image_id"))].append(note)
    names = {show(row.get("id")): row.get("name") for _, row in _objects(whole, "categories", file)
             if isinstance(row, dict)}  # fmt: skip

    def make(row: object, where: str) -> Sample:
        if not isinstance(row, dict):
            raise DataError(f"expected an object, found {show(row)}")
        found = notes.get(show(row.get("id")), [])
        return sample_of(_record(row, found, names, reading), root, source, where, reading)

    return samples(_records(whole, file), make, source, reading.on_error)


def _record(
    image: Mapping[str, Any], notes: list[dict], names: Mapping[str, Any], reading: Reading
) -> dict[str, Any]:
    """The record of an image with its annotations, as rows.py reads it. Raises DataError."""
    size = {"width": image.get("width"), "height": image.get("height")}
    row = {"id": image.get("id"), "image": image.get("file_name"), **size}
    captions = [note.get("caption") for note in notes if note.get("caption") is not None]
    boxes = [note for note in notes if note.get("bbox") and not note.get("iscrowd")]
    if crowds := sum(bool(note.get("iscrowd")) for note in notes):
        reading.unused[CROWDS] += crowds
    if captions:
        return row | {"captions": captions}
    if not boxes:
        raise DataError(
            f"no caption for the image {show(image.get('id'))}, nor a box; add one or remove it"
        )
    corners = [corners_of(note["bbox"], "bbox") for note in boxes]
    if isinstance(image.get("caption"), str) and len(boxes) == 1:
        return row | {"expression": image["caption"], "bbox": corners[0]}
    called = [names.get(show(note.get("category_id"))) for note in boxes]
    return row | {"detections": list(zip(called, corners, strict=True))}


def _records(whole: dict, file: Path) -> Iterator[Record]:
    """The images, then the annotations that belong to none of them."""
    known = set()
    for where, row in _objects(whole, "images", file):
        known.add(show(row.get("id")) if isinstance(row, dict) else None)
        yield where, row
    for where, note in _objects(whole, "annotations", file):
        if not isinstance(note, dict):
            yield where, DataError(f"expected an object, found {show(note)}")
        elif (name := show(note.get("image_id"))) not in known:
            yield where, DataError(f"no image {name} in the file; add it or remove its caption")


def _objects(whole: dict, key: str, file: Path) -> Iterator[Record]:
    for i, row in enumerate(typed(whole, key, list, [])):
        yield f"{file.name}:{key}[{i}]", row


FORMAT = ImageDatasetFormat("coco", "COCO captions or instances", claims, read)
