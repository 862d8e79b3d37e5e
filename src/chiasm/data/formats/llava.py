"""LLaVA JSON: [{"id", "image": "a.jpg", "conversations": [{"from": "human", "value": ...}]}]."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.data.formats.format import Format, Look
from chiasm.data.formats.reading import OnError, folder_name, json_records, samples
from chiasm.data.formats.rows import from_and_value


def claims(look: Look) -> bool:
    return look.any_row(lambda row: "conversations" in row and ("image" in row or "video" in row))


def read(path: Path, on_error: OnError | None, images: Path | None) -> Iterable[Sample]:
    file = Look(path).file or path
    root, source = images or file.parent, folder_name(file)
    return samples(
        json_records(file),
        lambda row, where: from_and_value(row, root, source, where),
        source,
        on_error,
    )


FORMAT = Format("llava", "LLaVA JSON", claims, read)
