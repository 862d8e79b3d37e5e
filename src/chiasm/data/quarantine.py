"""Samples that could not be used: counted, listed, never replaced in silence."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample

UNUSED = "(keys that are not used)"


@dataclass
class Quarantine:
    """Bad samples by id with their reasons; written to quarantine.jsonl when a path is given.

    unused: how many records have a key that no reader uses, by its name, and remarks in brackets
    (formats/reading.py).
    Raises DataError when more than `limit` of the samples are bad: then it is the data set, not a
    few files.
    """

    path: Path | None = None
    limit: float = 0.5
    reasons: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    _places: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, sample: Sample, error: Exception, total: int) -> None:
        """A sample of `total` that a stream could not use."""
        self.sample(sample, error)
        if len(self.reasons) > max(1, self.limit * total) or len(self.reasons) >= total:
            raise DataError(
                f"{len(self.reasons)} of {total} samples cannot be used, more than "
                f"{self.limit:.0%}; the last: {error}"
            )

    def write_unused(self) -> None:
        """Add a line for the keys that are not used, if there are any."""
        if self.unused and self.path is not None:
            self._write({"id": UNUSED, "reason": said_of(self.unused), "keys": dict(self.unused)})

    def sample(self, sample: Sample, error: Exception) -> None:
        """A sample that cannot be used, once however often it comes; another one of the same id is
        told apart by its place."""
        key = sample.name
        if self._places.setdefault(key, sample.where) != sample.where:
            key = f"{key} ({sample.where})"
        self.record(key, error)

    def record(self, key: str, error: Exception) -> None:
        """A record that is no sample, by its place: the on_error of the readers."""
        if key in self.reasons:
            return
        self.reasons[key] = str(error)
        self._write({"id": key, "reason": str(error)})

    def _write(self, row: dict) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # A lone surrogate (bytes that are no UTF-8) would not encode: JSON escapes it.
                file.write(json.dumps(row) + "\n")


def said_of(unused: Counter[str], most: int = 20) -> str:
    """ "keys not used: level 3, objects 1; noted: empty replies 2", "" for none. Names in brackets
    are remarks, no keys."""
    remarks = {name: count for name, count in unused.items() if name.startswith("(")}
    keys = [(name, count) for name, count in unused.most_common() if name not in remarks]
    said = []
    if keys:
        more = f" and {len(keys) - most:,} more" * (len(keys) > most)
        named = ", ".join(f"{name} {count:,}" for name, count in keys[:most])
        said.append(f"keys not used: {named}{more}")
    if remarks:
        noted = ", ".join(f"{name.strip('()')} {count:,}" for name, count in remarks.items())
        said.append(f"noted: {noted}")
    return "; ".join(said)
