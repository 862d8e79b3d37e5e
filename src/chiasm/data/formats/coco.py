"""COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats.format import Format, Look
from chiasm.data.formats.media_value import to_image
from chiasm.data.formats.reading import (
    Place,
    Reading,
    Record,
    folder_name,
    identity,
    samples,
    show,
    typed,
)
from chiasm.data.formats.rows import described

FOLDERS = ("images", "train2017", "val2017", "train2014", "val2014")


def claims(look: Look) -> bool:
    """One object with both lists: judged by the head of the file, which may be large."""
    if look.file is None or look.file.suffix != ".json" or not look.file.is_file():
        return False
    with look.file.open("rb") as stream:
        head = stream.read(2**16).lstrip()
        stream.seek(max(0, look.file.stat().st_size - 2**20))
        tail = stream.read()
    names = (b'"file_name"', b'"image_id"', b'"annotations"', b'"caption"')
    return head.startswith(b"{") and all(name in head or name in tail for name in names[:2])


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    file = Look(path).file or path
    source = folder_name(file)
    try:
        whole = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON: {error}; correct the file") from None
    if not isinstance(whole, dict):
        raise DataError(f"{file}: {show(whole)} is no COCO file; give one with images")
    captions = defaultdict(list)
    for _, note in _objects(whole, "annotations", file):
        if isinstance(note, dict):
            captions[show(note.get("image_id"))].append(note.get("caption"))

    def make(row: object, where: str) -> Sample:
        if not isinstance(row, dict):
            raise DataError(f"expected an object, found {show(row)}")
        name = row.get("file_name")
        root = reading.images or _folder(file, name)
        shown = to_image(name, "file_name", Place(root, source, where, reading))
        found = captions.get(show(row.get("id")))
        if not found:
            raise DataError(f"no caption for the image {show(row.get('id'))}; add one or remove it")
        return described((shown,), found, identity(row), source, {"where": where})

    return samples(_records(whole, file), make, source, reading.on_error)


def _records(whole: dict, file: Path) -> Iterator[Record]:
    """The images, then the captions that belong to none of them."""
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


def _folder(file: Path, name: object) -> Path:
    """Where COCO's own layout puts the images of annotations/captions_*.json."""
    roots = [file.parent, *(f / n for f in (file.parent, file.parent.parent) for n in FOLDERS)]
    return next((r for r in roots if isinstance(name, str) and (r / name).is_file()), file.parent)


FORMAT = Format("coco", "COCO captions", claims, read)
