"""Hugging Face `datasets`: a folder of save_to_disk, or by name as hf:ORG/NAME[:CONFIG], streamed.

Images are taken as the bytes that are stored, not decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError, MissingExtraError
from chiasm.core.sample import Sample
from chiasm.data.formats.format import ImageDatasetFormat, Look
from chiasm.data.formats.parquet import restored
from chiasm.data.formats.reading import Reading, Record, folder_name, samples
from chiasm.data.formats.rows import sample_of

PREFIX = "hf:"


def claims(look: Look) -> bool:
    saved = {"state.json", "dataset_info.json"} <= {*look.names}
    return saved or "dataset_dict.json" in look.names


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    """A folder of save_to_disk; of several splits the one called train, or the only one."""
    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # missing or broken files, in whatever words
        raise _unreadable(str(path), error, "save the data set again") from None
    if hasattr(loaded, "keys"):
        loaded = loaded[_named(loaded, "train", str(path))]
    return _samples(loaded, reading.root(path), folder_name(path), reading)


def splits(path: Path) -> list[str]:
    """The names of the splits of a DatasetDict saved to disk, which are its folders."""
    return [p.name for p in path.iterdir() if (p / "state.json").is_file()]


def stream(name: str, split: str, reading: Reading) -> tuple[Iterator[Sample], bool]:
    """(samples of hf:NAME[:CONFIG], whether the data set has this split of its own)."""
    where, _, config = name.removeprefix(PREFIX).partition(":")
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(where, config or None, streaming=True)
    except Exception as error:  # the hub's client, fsspec and the builders raise what they like
        raise _unreadable(name, error, "check the name and the network") from None
    own = _test_of(loaded) if split == "test" else None
    chosen = own or _named(loaded, "train", name)
    rows = _samples(loaded[chosen], reading.root(Path(".")), where, reading)
    return rows, own is not None or _test_of(loaded) is not None


def _test_of(loaded: Any) -> str | None:
    return next((s for s in ("test", "validation", "val") if s in loaded), None)


def _named(loaded: Any, split: str, name: str) -> str:
    names = list(loaded)
    if split in names:
        return split
    if len(names) != 1:
        raise DataError(f"{name}: holds the splits {', '.join(names)} and no {split}; choose one")
    return names[0]


def _samples(
    table: Any, root: Path, source: str, reading: Reading
) -> Iterator[Sample]:  # fmt: skip
    datasets = _datasets()
    for column, feature in dict(table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(column, datasets.List(datasets.Image(decode=False)))

    def make(row: dict, where: str) -> Sample:
        return sample_of(restored(row), root, source, where, reading)

    return samples(_rows(table), make, source, reading.on_error)


def _rows(table: Any) -> Iterator[Record]:
    number = 0
    try:
        for row in table:
            yield f"row {number}", row
            number += 1
    except Exception as error:  # a broken file, the network
        yield f"row {number}", _unreadable("not readable from here on", error, "load it again")


def _unreadable(what: str, error: Exception, remedy: str) -> DataError:
    words = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{what}: {words}; {remedy}")


def _datasets() -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError("datasets", "hf", "reading Hugging Face data sets") from None
    return datasets


FORMAT = ImageDatasetFormat("hf", "Hugging Face data set", claims, read)
