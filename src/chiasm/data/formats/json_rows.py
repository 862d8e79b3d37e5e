"""JSON lines, JSON arrays and CSV files whose records are of any form: LLaVA, ShareGPT,
LLaMA-Factory, ms-swift, messages and plain tables are read by the same reader.

Their names tell how a file was recognised and can be said with --format; each record is read by its
own form (forms.py), so that a file may mix them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats import llama_factory
from chiasm.data.formats.conversation import PLACEHOLDER
from chiasm.data.formats.format import ImageDatasetFormat, Look, files_of
from chiasm.data.formats.forms import form_of
from chiasm.data.formats.messages import TRAIN, find_jsonl
from chiasm.data.formats.normal import normal
from chiasm.data.formats.reading import Reading, folder_name, records_of, samples, table_rows
from chiasm.data.formats.rows import sample_of
from chiasm.data.formats.shared_images import SharedImages


def kind_of(look: Look) -> str | None:
    """The name of the format that most of a JSON file's first records have; None for no JSON file
    or none that fits."""
    if look.file is None:
        return None
    if llama_factory.declared(look.file):
        return "llama-factory"
    lines = look.file.suffix == ".jsonl"
    if not look.rows:  # nothing usable, or nothing at all: the reader says what is wrong
        return "messages" if lines and (look.path == look.file or look.file.name == TRAIN) else None
    kinds = Counter(filter(None, (_kind(normal(row, look.columns), lines) for row in look.rows)))
    return kinds.most_common(1)[0][0] if kinds else None


def _kind(row: dict, lines: bool) -> str | None:
    form = form_of(row)
    if form is None:
        return None
    if form.name == "messages":
        return _kind_of_messages(row, lines)
    if form.name == "conversations":
        return "llava" if "image" in row or "video" in row else "sharegpt"
    if "instruction" in row and "output" in row:
        return "llama-factory"
    return "swift" if "query" in row and "response" in row else "table"


def _kind_of_messages(row: dict, lines: bool) -> str:
    said = row["messages"] if isinstance(row["messages"], list) else []
    contents = [one.get("content") for one in said if isinstance(one, dict)]
    if any(isinstance(content, list) for content in contents):
        return "messages"
    media = any(row.get(name) for name in ("images", "videos", "image", "video"))
    placed = any(isinstance(c, str) and PLACEHOLDER.search(c) for c in contents)
    plain = "messages" if lines else "llama-factory"
    return ("swift" if lines else plain) if media or placed else plain


def _claims(name: str) -> Callable[[Look], bool]:
    return lambda look: kind_of(look) == name


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    file = Look(path).file or path
    return _samples(file, reading)


def _read_messages(path: Path, reading: Reading) -> Iterable[Sample]:
    return _samples(path if path.suffix == ".json" else find_jsonl(path), reading)


def _samples(file: Path, reading: Reading) -> Iterable[Sample]:
    if not file.is_file():
        raise DataError(f"{file}: not a file of records; name a .jsonl, .json or .csv file")
    root, source = reading.root(file.parent), folder_name(file)
    rename = llama_factory.renaming(file)
    shared = SharedImages()

    def make(row: dict, where: str) -> Sample:
        row = rename(row)
        if file.suffix == ".csv":
            row = shared.resolved(row)
        return sample_of(row, root, source, where, reading)

    records: Iterable[tuple[str, Any]] = (
        table_rows(file) if file.suffix == ".csv" else records_of(file)
    )
    return samples(records, make, source, reading.on_error)


def _claims_table(look: Look) -> bool:
    if look.path.is_dir():
        tables = [name for name in look.names if name.endswith(".csv")]
        return (bool(tables) and "metadata.csv" not in tables) or kind_of(look) == "table"
    known = look.path.name != "metadata.csv"
    return (look.path.suffix == ".csv" and known) or kind_of(look) == "table"


def _read_table(path: Path, reading: Reading) -> Iterable[Sample]:
    if path.is_dir() and Look(path).file is None:
        for file in files_of(path, "*.csv"):
            yield from _samples(file, reading)
    else:
        yield from read(path, reading)


MESSAGES = ImageDatasetFormat("messages", "messages JSONL", _claims("messages"), _read_messages)
LLAVA = ImageDatasetFormat("llava", "LLaVA JSON", _claims("llava"), read)
SHAREGPT = ImageDatasetFormat("sharegpt", "ShareGPT JSON", _claims("sharegpt"), read)
LLAMA_FACTORY = ImageDatasetFormat(
    "llama-factory", "LLaMA-Factory JSON", _claims("llama-factory"), read
)
SWIFT = ImageDatasetFormat("swift", "ms-swift JSONL", _claims("swift"), read)
TABLE = ImageDatasetFormat("table", "table", _claims_table, _read_table)
