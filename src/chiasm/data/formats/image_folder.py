"""An image folder with metadata.jsonl or metadata.csv: {"file_name": "a.jpg", "text": ...}."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats.format import ImageDatasetFormat, Look
from chiasm.data.formats.reading import Reading, folder_name, json_lines, samples, table_rows
from chiasm.data.formats.rows import sample_of

NAMES = ("metadata.jsonl", "metadata.csv")


def claims(look: Look) -> bool:
    return look.path.name in NAMES or bool({*NAMES} & {*look.names})


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    found = [path] if path.is_file() else [path / name for name in NAMES if (path / name).is_file()]
    if not found:
        raise DataError(f"{path}: holds neither {' nor '.join(NAMES)}; add one")
    file = found[0]
    root, source = reading.root(file.parent), folder_name(file)

    def make(row: dict, where: str) -> Sample:
        for given, own in (("file_names", "images"), ("file_name", "image")):
            if given in row:
                row = {own: row[given], **{k: v for k, v in row.items() if k != given}}
        return sample_of(row, root, source, where, reading)

    return samples(
        table_rows(file) if file.suffix == ".csv" else json_lines(file),
        make,
        source,
        reading.on_error,
    )


FORMAT = ImageDatasetFormat("image-folder", "image folder with metadata", claims, read)
