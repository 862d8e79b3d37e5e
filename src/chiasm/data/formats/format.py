"""What a format is, and the look at a path by which formats recognise themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from chiasm.core.sample import Sample
from chiasm.data.formats.published import is_answers
from chiasm.data.formats.reading import Reading, records_of

SEEN = 100  # records that are looked at
SIDE_FILES = (
    "metadata.jsonl", "metadata.csv", "dataset_info.json", "dataset_dict.json",
    "dataset_infos.json", "state.json", "quarantine.jsonl", "dropped.jsonl", "skipped.jsonl",
    "filter.json", "pid_splits.json",
)  # fmt: skip
"""What stands beside data and is none of it."""

Read = Callable[[Path, Reading], Iterable[Sample]]
"""(file or folder, how it is read)"""


@dataclass(frozen=True)
class ImageDatasetFormat:
    """name: as given to --format; title: as told to the user; claims: does it look like this?"""

    name: str
    title: str
    claims: Callable[[Look], bool]
    read: Read


@dataclass(frozen=True)
class Look:
    """The first things seen of a file or a folder, read once for all formats."""

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    """what -> column, where the user says so"""

    @cached_property
    def names(self) -> list[str]:
        """What stands directly in the folder."""
        return sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []

    @cached_property
    def file(self) -> Path | None:
        """The JSON or JSONL file that the path means; in a folder train.jsonl or the only one."""
        if not self.path.is_dir():
            return self.path if self.path.suffix in (".json", ".jsonl") else None
        found = [
            n
            for n in self.names
            if n.endswith((".json", ".jsonl"))
            and n not in SIDE_FILES
            and not is_answers(self.path / n)
        ]
        for name in ("train.jsonl", "train.json"):
            if name in found:
                return self.path / name
        return self.path / found[0] if len(found) == 1 else None

    @cached_property
    def rows(self) -> list[dict]:
        """The first usable records of that file."""
        if self.file is None or not self.file.is_file():
            return []
        return [row for _, row in islice(records_of(self.file), SEEN) if isinstance(row, dict)]

    def any_row(self, test: Callable[[dict], Any]) -> bool:
        return any(map(test, self.rows))


def files_of(path: Path, pattern: str) -> Iterator[Path]:
    """The path if it is a file; else the folder's files of a pattern, in order, also below it."""
    if path.is_file():
        yield path
    else:
        yield from sorted(p for p in path.rglob(pattern) if p.is_file())
