"""Every format that is read and written, and which one a path is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.registry import Registry
from chiasm.core.sample import Sample
from chiasm.data.formats import (
    class_folder,
    coco,
    huggingface,
    image_folder,
    parquet,
    plain,
    vlmevalkit,
    webdataset,
)
from chiasm.data.formats.format import ImageDatasetFormat, Look
from chiasm.data.formats.json_rows import (
    LLAMA_FACTORY,
    LLAVA,
    MESSAGES,
    SHAREGPT,
    SWIFT,
    TABLE,
)
from chiasm.data.formats.messages import write_messages
from chiasm.data.formats.parquet import write_parquet
from chiasm.data.formats.webdataset import write_webdataset

FORMATS: Registry[ImageDatasetFormat] = Registry(
    "format",
    ImageDatasetFormat,
    {
        each.name: each
        for each in (
            MESSAGES,
            LLAVA,
            SHAREGPT,
            LLAMA_FACTORY,
            SWIFT,
            huggingface.FORMAT,
            parquet.FORMAT,
            webdataset.FORMAT,
            image_folder.FORMAT,
            vlmevalkit.FORMAT,
            coco.FORMAT,
            plain.FORMAT,
            class_folder.FORMAT,
            TABLE,
        )
    },
)
NAMES = FORMATS

Write = Callable[[Iterable[Sample], Path, str], None]
"""(samples, folder, name of the split)"""

WRITERS: dict[str, Write] = {
    "messages": lambda samples, folder, split: write_messages(samples, folder / f"{split}.jsonl"),
    "webdataset": write_webdataset,
    "parquet": lambda samples, folder, split: write_parquet(samples, folder / f"{split}.parquet"),
}


def by_name(name: str) -> ImageDatasetFormat:
    """The format called so, or module:NAME of the user's own. Raises ConfigError with the nearest
    name."""
    return FORMATS.find(name)


def detect(path: Path, columns: Mapping[str, str] | None = None) -> ImageDatasetFormat:
    """The one format that recognises itself in the path. Raises DataError where none does, or
    several: then the user decides. columns: what -> column (normal.COLUMNS)."""
    look = Look(path, columns or {})
    found = [format for format in FORMATS.values() if format.claims(look)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{path}: could be {' or '.join(format.title for format in found)}; "
            f"say --format {' or '.join(format.name for format in found)}"
        )
    raise DataError(
        f"{path}: no known format{_hint(look)}; give a file or a folder of one of "
        f"{', '.join(NAMES)}, or say --format"
    )


def _hint(look: Look) -> str:
    files = [name for name in look.names if name.endswith((".json", ".jsonl"))]
    return f" (it holds {', '.join(files[:5])}: name one)" if len(files) > 1 else ""
