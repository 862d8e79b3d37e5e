"""Parquet through pyarrow: a row a sample, images inside as Hugging Face stores them.

What write_parquet writes, `datasets.load_dataset("parquet", ...)` opens with decoded images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError, MissingExtraError
from chiasm.core.sample import Message, Sample
from chiasm.data.formats.format import ImageDatasetFormat, Look, files_of
from chiasm.data.formats.media import Appearing, image_bytes
from chiasm.data.formats.messages import own_meta, part_row, videos_of
from chiasm.data.formats.reading import Reading, Record, folder_name, samples
from chiasm.data.formats.rows import sample_of

AT_ONCE = 64  # rows in memory


def claims(look: Look) -> bool:
    if look.path.is_file():
        return look.path.suffix == ".parquet"
    inner = look.path / "data"
    names = [*look.names, *(p.name for p in inner.iterdir())] if inner.is_dir() else look.names
    return any(name.endswith(".parquet") for name in names)


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    for file in files_of(path, "*.parquet"):
        root, source = reading.root(file.parent), folder_name(file)

        def make(row: dict, where: str, root=root, source=source) -> Sample:
            return sample_of(restored(row), root, source, where, reading)

        yield from samples(_rows(file), make, source, reading.on_error)


def restored(row: dict) -> dict:
    """meta as an object: it is stored as JSON, because its shape differs from row to row."""
    if isinstance(row.get("meta"), str) and isinstance(row.get("messages"), list):
        try:
            return {**row, "meta": json.loads(row["meta"])}
        except ValueError as error:
            raise DataError(f'"meta" is not JSON: {error}') from None
    return row


def _rows(file: Path) -> Iterator[Record]:
    pyarrow = _pyarrow("reading parquet")
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(AT_ONCE):
                for row in batch.to_pylist():
                    yield f"{file.name}[{number}]", row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        words = " ".join(str(error).split())
        yield f"{file.name}[{number}]", DataError(f"not readable from here on: {words}")


def write_parquet(written: Iterable[Sample], path: Path) -> None:
    """One file; it appears only whole. Raises DataError for a sample with a video."""
    pyarrow = _pyarrow("writing parquet")
    schema = _schema(pyarrow)
    rows = map(_row, written)
    with (
        Appearing(path) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema) as table,
    ):
        while batch := list(islice(rows, AT_ONCE)):
            table.write_table(pyarrow.Table.from_pylist(batch, schema))


def _row(sample: Sample) -> dict:
    if videos_of(sample):
        raise DataError(f"{sample.where}: parquet holds no videos; import --to messages")
    try:
        meta = json.dumps(own_meta(sample))
    except (TypeError, ValueError) as error:
        raise DataError(f"{sample.where}: meta is not JSON: {error}; convert or drop it") from None
    return {
        "id": sample.id,
        "images": [{"bytes": image_bytes(image), "path": None} for image in sample.all_images],
        "messages": list(map(_message, sample.turns)),
        "rejected": list(map(_message, sample.rejected)) or None,
        "desired": sample.desired,
        "independent": sample.independent,
        "meta": meta,
    }


def _message(turn: Message) -> dict:
    parts = [part_row(part) for part in turn.content]
    return {"role": turn.role, "content": parts, "loss": None if turn.supervised else False}


def _schema(pyarrow: Any) -> Any:
    """Our columns, with the features by which `datasets` knows the images."""
    text, struct, many = pyarrow.string(), pyarrow.struct, pyarrow.list_
    value = {"dtype": "string", "_type": "Value"}
    number = {"dtype": "int64", "_type": "Value"}
    box = {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "List"}
    part = {"type": value, "text": value, "box": box, "image_number": number}
    content = {"feature": part, "_type": "List"}
    loss = {"dtype": "bool", "_type": "Value"}
    messages = {"feature": {"role": value, "content": content, "loss": loss}, "_type": "List"}
    features = {
        "id": value,
        "images": {"feature": {"_type": "Image"}, "_type": "List"},
        "messages": messages,
        "rejected": messages,
        "desired": loss,
        "independent": {"dtype": "bool", "_type": "Value"},
        "meta": value,
    }
    part = struct(
        [("type", text), ("text", text), ("box", many(pyarrow.float64())),
         ("image_number", pyarrow.int64())]
    )  # fmt: skip
    message = struct([("role", text), ("content", many(part)), ("loss", pyarrow.bool_())])
    return pyarrow.schema(
        [
            ("id", text),
            ("images", many(struct([("bytes", pyarrow.binary()), ("path", text)]))),
            ("messages", many(message)),
            ("rejected", many(message)),
            ("desired", pyarrow.bool_()),
            ("independent", pyarrow.bool_()),
            ("meta", text),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _pyarrow(purpose: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", purpose) from None
    return pyarrow


FORMAT = ImageDatasetFormat("parquet", "parquet", claims, read)
