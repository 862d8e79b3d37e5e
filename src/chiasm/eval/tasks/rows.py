"""Tables of the shapes in which benchmarks are published, row by row."""

from __future__ import annotations

import base64
import binascii
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError, MissingExtraError
from chiasm.core.sample import Image

SUFFIXES = (".jsonl", ".json", ".tsv", ".csv", ".parquet")


def read_rows(file: Path) -> Iterator[dict]:
    """The rows of a .jsonl, .json (a list, or a list under "data"), .tsv, .csv or .parquet file.
    Raises DataError naming file and line."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; give a table of {', '.join(SUFFIXES)}")
    if file.suffix == ".parquet":
        return _parquet(file)
    if file.suffix in (".tsv", ".csv"):
        return _separated(file, "\t" if file.suffix == ".tsv" else ",")
    if file.suffix == ".jsonl":
        return _lines(file)
    if file.suffix == ".json":
        return _list(file)
    raise DataError(f"{file}: not a table; known are {', '.join(SUFFIXES)}")


def read_json(file: Path) -> Any:
    """A JSON file whole; DataError where it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{file}: cannot be read; is the benchmark's folder complete?") from None
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); fetch it again") from None


def one(folder: Path, *patterns: str) -> Path:
    """The first file of a folder that fits a pattern. DataError names what was looked for."""
    found = maybe(folder, *patterns)
    if found is None:
        raise DataError(f"{folder}: holds none of {', '.join(patterns)}")
    return found


def maybe(folder: Path, *patterns: str) -> Path | None:
    """As `one`, or None."""
    return next((file for p in patterns for file in sorted(folder.glob(p))), None)


def hub_rows(folder: Path, split: str, under: str = "**") -> list[dict] | None:
    """The rows of a data set of the Hugging Face hub (SPLIT-00000-of-00001.parquet), or None where
    the folder has no such files."""
    files = sorted(folder.glob(f"{under}/{split}-*.parquet"))
    return [row for file in files for row in read_rows(file)] if files else None


def read_image(value: Any, folder: Path, where: str) -> Image:
    """An image as tables hold it: the hub's {"bytes", "path"}, a path below the folder, or base64.
    Raises DataError for anything else."""
    if isinstance(value, dict):
        if value.get("bytes"):
            return Image(value["bytes"], where)
        value = value.get("path")
    if isinstance(value, bytes):
        return Image(value, where)
    if isinstance(value, str) and value:
        # Base64 of an image is long and has no dot; a path has one before its suffix.
        if "." not in value and len(value) > 64:
            try:
                return Image(base64.b64decode(value, validate=True), where)
            except binascii.Error:
                pass
        return Image(folder / value, where)
    raise DataError(f"{where}: an image is {str(value)[:40]!r}; expected a path or its bytes")


def _lines(file: Path) -> Iterator[dict]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(f"{file}:{number}: not JSON ({error}); correct it") from None


def _list(file: Path) -> Iterator[dict]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError:  # POPE's .json files are one object a line
        return _lines(file)
    rows = found.get("data") if isinstance(found, dict) else found
    if not isinstance(rows, list):
        raise DataError(f'{file}: neither a list nor an object with a list "data"')
    return iter(rows)


def _separated(file: Path, mark: str) -> Iterator[dict]:
    # Images as base64 are longer than Python lets a field be; its limit is the process's.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter=mark))
    except csv.Error as error:
        raise DataError(f"{file}: not a table ({error}); save it again") from None
    finally:
        csv.field_size_limit(limit)
    return iter(rows)


def _parquet(file: Path) -> Iterator[dict]:
    try:
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"Reading {file.name}") from None
    for batch in ParquetFile(file).iter_batches(batch_size=256):
        yield from batch.to_pylist()
